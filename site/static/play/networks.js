// Networks that run in two workers, so that the page moves while they compute.

const WORKERS = 2;
const RUNTIME = new URL("../ort-wasm-simd-threaded.wasm", import.meta.url).href;
export const FULL = 32; // bits of full precision

// The bits of a pair: "W2A4" is { w: 2, a: 4 }.
export function bitsOf(pair) {
  const [, w, a] = pair === "FP" ? [null, FULL, FULL] : pair.match(/^W(\d+)A(\d+)$/);
  return { w: Number(w), a: Number(a) };
}

class Desk {
  constructor() {
    this.open = new Map(); // what was asked and is not answered yet
    this.count = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.close(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      const error = event.message || "the runtime of the networks cannot be loaded";
      for (const id of [...this.open.keys()]) this.close({ id, error });
    };
  }

  ask(message) {
    const id = this.count++;
    return new Promise((resolve, reject) => {
      this.open.set(id, { resolve, reject });
      this.worker.postMessage({ id, ...message });
    });
  }

  close({ id, result, error }) {
    const { resolve, reject } = this.open.get(id);
    this.open.delete(id);
    error === undefined ? resolve(result) : reject(new Error(error));
  }
}

export class Networks {
  constructor() {
    if (typeof WebAssembly === "undefined") throw new Error("this browser has no WebAssembly");
    this.desks = Array.from({ length: WORKERS }, () => new Desk());
    this.places = new Map(); // by address of a file: the worker that has it, and a promise that it is loaded
    this.begun = this.begin();
  }

  // Fetch the runtime, once for all workers.
  async begin() {
    const binary = await (await fetch(RUNTIME)).arrayBuffer();
    await Promise.all(this.desks.map((desk) => desk.ask({ act: "begin", binary })));
  }

  // Load a file, once; its address.
  async load(file) {
    const url = new URL(file, import.meta.url).href;
    if (!this.places.has(url)) {
      const desk = this.desks[this.places.size % WORKERS];
      this.places.set(url, { desk, loaded: this.begun.then(() => desk.ask({ act: "load", url })) });
    }
    await this.places.get(url).loaded;
    return url;
  }

  // The output for `values`, a Float32Array of the given shape, at a pair of bits { w, a }.
  run(url, values, shape, bits) {
    return this.places.get(url).desk.ask({ act: "run", url, values, shape, bits });
  }
}
