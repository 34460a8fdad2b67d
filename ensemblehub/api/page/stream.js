/** What goes over the wire: requests to this server, and the server-sent events it replies with. */

const KEY = "ensemblehub-key"; // in sessionStorage: gone with the tab
const utf8 = (text) => String.fromCharCode(...new TextEncoder().encode(text)); // the bytes that a header may hold

/**
 * Fetch from this server; `askForKey` gets a key where one is needed, which is kept once it has worked. No
 * success is an Error, with the server's message, its code and the field that is wrong.
 */
export async function send(path, options, askForKey) {
  for (let key = sessionStorage.getItem(KEY); ; key = await askForKey(key !== null)) {
    const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${utf8(key)}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok && key) sessionStorage.setItem(KEY, key);
    if (response.ok) return response;
    if (response.status !== 401) {
      const body = await response.json().catch(() => null);
      const wait = Number(response.headers.get("retry-after"));
      throw Object.assign(new Error(`the server replied ${response.status}`), body?.error, { wait });
    }
  }
}

/** The data of server-sent events, parsed, until `[DONE]`. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the stream ended before the run did");
    const blocks = (waiting + value).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks.filter((lines) => lines.startsWith("data: "))) { // others are comments
      if (block === "data: [DONE]") return;
      const chunk = JSON.parse(block.slice(6));
      if (chunk.error) throw Object.assign(new Error(), chunk.error);
      yield chunk;
    }
  }
}
