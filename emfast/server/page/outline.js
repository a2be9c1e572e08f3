// From the server's layers to a mask and its outline. A pixel takes four bytes: red is the grey,
// green the probability in 256 levels.

// 1 where the probability is not below level / 256.
export function maskOf(layers, level) {
  const mask = new Uint8Array(layers.width * layers.height);
  for (let i = 0; i < mask.length; i++) mask[i] = layers.data[4 * i + 1] >= level ? 1 : 0;
  return mask;
}

// The image in grey; pixels of the mask that have background within `reach` pixels are coloured.
export function outlined(layers, mask, reach) {
  const { width, height, data } = layers;
  const picture = new ImageData(width, height);
  const out = picture.data;
  const outside = (x, y) =>
    x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] === 0;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      let edge = false;
      for (let d = 1; mask[i] && !edge && d <= reach; d++) {
        edge = outside(x - d, y) || outside(x + d, y) || outside(x, y - d) || outside(x, y + d);
      }
      const grey = data[4 * i];
      out[4 * i] = edge ? 255 : grey;
      out[4 * i + 1] = edge ? 64 : grey;
      out[4 * i + 2] = edge ? 32 : grey;
      out[4 * i + 3] = 255;
    }
  }
  return picture;
}

// Black and white, as a file.
export function maskFile(mask, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const picture = new ImageData(width, height);
  picture.data.fill(255);
  for (let i = 0; i < mask.length; i++) if (!mask[i]) picture.data.fill(0, 4 * i, 4 * i + 3);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}
