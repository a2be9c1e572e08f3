// One step of a sampler on the device: noise, update and the network's next input in one pass.
//
// The arithmetic is that of noise.py and of samplers/sampler.py, operation by operation, so that
// a trajectory differs from the host's by rounding alone (compile without fused multiply-add).
// Which step it is stands in device memory, and the last block to finish moves it on: a captured
// launch needs nothing from the host.

struct Run {
    unsigned long long seed;
    unsigned step;      // the next row of the table
    unsigned finished;  // blocks that are done with it
};

// A row of the table: samplers/sampler.py, Step. Row 0 is the noise that sampling starts from.
struct Row {
    float x_coefficient, prediction_coefficient, x0_weight, x_weight, previous_weight, deviation;
    unsigned timestep;
    unsigned keeps;  // whether the next row has a weight for this row's x0
};

// What the network's tensors are of, as flags.
enum { PREDICTION_HALF = 1, INPUT_HALF = 2, TIMESTEP_HALF = 4 };

#ifdef __CUDACC__
// Without cuda_fp16.h, which the wheel of NVRTC does not bring.
__device__ __forceinline__ unsigned short half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float half_value(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

// Philox4x64-10 (Salmon et al., SC11); the words replace the counter.
__device__ __forceinline__ void philox(unsigned long long c[4], unsigned long long k0,
                                       unsigned long long k1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long high0 = __umul64hi(0xD2E7470EE14C6C93ull, c[0]);
        const unsigned long long high1 = __umul64hi(0xCA5A826395121157ull, c[2]);
        const unsigned long long low0 = 0xD2E7470EE14C6C93ull * c[0];
        const unsigned long long low1 = 0xCA5A826395121157ull * c[2];
        c[0] = high1 ^ c[1] ^ k0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ k1;
        c[3] = low0;
        k0 += 0x9E3779B97F4A7C15ull;
        k1 += 0xBB67AE8584CAA73Bull;
    }
}

// Box-Muller of one word.
__device__ __forceinline__ void normal_pair(unsigned long long word, float& first, float& second) {
    const float uniform = ((float)(unsigned)word + 0.5f) * 2.3283064365386963e-10f;  // 2^-32
    const float radius = sqrtf(logf(uniform) * -2.0f);
    const float angle = (float)(unsigned)(word >> 32) * 1.4629180792671596e-09f;  // 2 pi 2^-32
    float sine, cosine;
    sincosf(angle, &sine, &cosine);
    first = cosine * radius;
    second = sine * radius;
}

// Up to four elements in a row; in one access where that is aligned.
__device__ __forceinline__ void load(const float* from, float to[4], unsigned count, bool aligned) {
    if (aligned) {
        const float4 four = *(const float4*)from;
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; ++j)
            if (j < count) to[j] = from[j];
    }
}

__device__ __forceinline__ void load(const unsigned short* from, float to[4], unsigned count,
                                     bool aligned) {
    if (aligned) {
        const ushort4 four = *(const ushort4*)from;
        to[0] = half_value(four.x), to[1] = half_value(four.y);
        to[2] = half_value(four.z), to[3] = half_value(four.w);
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; ++j)
            if (j < count) to[j] = half_value(from[j]);
    }
}

__device__ __forceinline__ void store(float* to, const float from[4], unsigned count,
                                      bool aligned) {
    if (aligned) {
        float4 four;
        four.x = from[0], four.y = from[1], four.z = from[2], four.w = from[3];
        *(float4*)to = four;
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; ++j)
            if (j < count) to[j] = from[j];
    }
}

__device__ __forceinline__ void store(unsigned short* to, const float from[4], unsigned count,
                                      bool aligned) {
    if (aligned) {
        ushort4 four;
        four.x = half_bits(from[0]), four.y = half_bits(from[1]);
        four.z = half_bits(from[2]), four.w = half_bits(from[3]);
        *(ushort4*)to = four;
    } else {
#pragma unroll
        for (unsigned j = 0; j < 4; ++j)
            if (j < count) to[j] = half_bits(from[j]);
    }
}

// grid (any, images), block (any).
//
// indices: number of each image in the set. clip: lowest x0 of each channel, then highest.
// x, prediction, previous: (images, channels, pixels); channels * pixels is even.
// input: of the network, in half precision; a network of single precision reads x itself.
// timestep: (images,), for the network.
extern "C" __global__ void sampling_step(Run* run, const Row* rows,
                                         const unsigned long long* indices, const float* clip,
                                         float* x, const void* prediction, float* previous,
                                         void* input, void* timestep, unsigned channels,
                                         unsigned pixels, unsigned types) {
    const unsigned step = run->step;
    const Row row = rows[step];
    const unsigned image = blockIdx.y;
    const unsigned half = channels * pixels / 2;
    const bool aligned = half % 4 == 0;

    // One block of Philox a turn: four elements of the first half of the image, four of the second.
    for (unsigned block = blockIdx.x * blockDim.x + threadIdx.x; block * 4 < half;
         block += gridDim.x * blockDim.x) {
        const unsigned count = half - block * 4 < 4 ? half - block * 4 : 4;
        float noise[2][4] = {};
        if (row.deviation != 0) {
            unsigned long long words[4] = {block + 1ull, row.timestep, indices[image], 0};
            philox(words, run->seed, 0);
#pragma unroll
            for (unsigned j = 0; j < 4; ++j) normal_pair(words[j], noise[0][j], noise[1][j]);
        }
#pragma unroll
        for (unsigned part = 0; part < 2; ++part) {
            const unsigned element = block * 4 + part * half;
            const size_t at = (size_t)image * 2 * half + element;
            float value[4] = {};
            if (step != 0) {
                float x0[4] = {}, before[4] = {};
                if (types & PREDICTION_HALF)
                    load((const unsigned short*)prediction + at, x0, count, aligned);
                else
                    load((const float*)prediction + at, x0, count, aligned);
                load(x + at, value, count, aligned);
                if (row.previous_weight != 0) load(previous + at, before, count, aligned);
                unsigned channel = element / pixels;
#pragma unroll
                for (unsigned j = 0; j < 4; ++j) {
                    if (j >= count) break;
                    while (element + j >= (channel + 1) * pixels) ++channel;
                    const float low = clip[channel], high = clip[channels + channel];
                    x0[j] *= row.prediction_coefficient;
                    if (row.x_coefficient != 0) x0[j] += value[j] * row.x_coefficient;
                    // What is not a number stays so.
                    x0[j] = x0[j] < low ? low : x0[j] > high ? high : x0[j];
                    value[j] *= row.x_weight;
                    if (row.previous_weight != 0) value[j] += before[j] * row.previous_weight;
                    value[j] += x0[j] * row.x0_weight;
                }
                if (row.keeps) store(previous + at, x0, count, aligned);
            }
            if (row.deviation != 0)
#pragma unroll
                for (unsigned j = 0; j < 4; ++j) value[j] += noise[part][j] * row.deviation;
            store(x + at, value, count, aligned);
            if (types & INPUT_HALF)
                store((unsigned short*)input + at, value, count, aligned);
        }
    }

    if (blockIdx.x == 0 && threadIdx.x == 0) {
        const float next = (float)rows[step + 1].timestep;
        if (types & TIMESTEP_HALF)
            ((unsigned short*)timestep)[image] = half_bits(next);
        else
            ((float*)timestep)[image] = next;
    }

    // Every thread of a block has read the step before the block counts as finished.
    __syncthreads();
    if (threadIdx.x == 0) {
        if (atomicAdd(&run->finished, 1u) == gridDim.x * gridDim.y - 1) {
            run->finished = 0;
            run->step = step + 1;
        }
    }
}
