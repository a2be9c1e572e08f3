// /openapi.json as a plain page.

function element(name, text = "", ...children) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

function table(...rows) {
  const made = rows.map((cells, i) => {
    const kind = i === 0 ? "th" : "td";
    return element("tr", "", ...cells.map((cell) => element(kind, cell)));
  });
  return element("table", "", ...made);
}

// Paragraphs; what is indented is code.
function prose(text) {
  return text.split("\n\n").map((block) =>
    block.startsWith("    ")
      ? element("pre", block.replace(/^ {4}/gm, ""))
      : element("p", block),
  );
}

function accepted(schema) {
  if (schema.anyOf) return accepted(schema.anyOf[0]);
  if (schema.enum) return schema.enum.join(", ");
  const range = "minimum" in schema ? `, ${schema.minimum} to ${schema.maximum}` : "";
  return `${schema.type}${range}`;
}

function operation(method, path, about, resolve) {
  const parts = [element("h2", `${method.toUpperCase()} ${path}`), element("p", about.summary)];
  if (about.description) parts.push(...prose(about.description));
  if (about.parameters) {
    const rows = about.parameters.map((parameter) => {
      const usual = parameter.schema.default;
      const range = accepted(resolve(parameter.schema));
      const values = usual === undefined ? range : `${range}; ${usual} by default`;
      return [parameter.name, values, parameter.description ?? ""];
    });
    parts.push(table(["query", "accepted", "meaning"], ...rows));
  }
  if (about.requestBody) {
    parts.push(element("p", `Body: ${Object.keys(about.requestBody.content).join(", ")}`));
  }
  const rows = Object.entries(about.responses).map(([status, response]) => {
    const example = response.content?.["application/json"]?.example;
    return [status, response.description, example ? JSON.stringify(example) : ""];
  });
  if (rows.length > 1) parts.push(table(["status", "meaning", "JSON, for example"], ...rows));
  return element("section", "", ...parts);
}

const api = await (await fetch("openapi.json")).json();
const resolve = (schema) =>
  schema.$ref ? api.components.schemas[schema.$ref.split("/").at(-1)] : schema;
const main = document.getElementById("paths");
main.append(...prose(api.info.description));
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    main.append(operation(method, path, about, resolve));
  }
}
