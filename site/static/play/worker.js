// Runs networks in ONNX Runtime. A network is an ONNX file whose bits are inputs, as
// `mebqat-lite export --to onnx --bits switch` writes it.

import * as ort from "../ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // more threads need headers that simple servers do not send
const sessions = new Map();

const number = (value) => new ort.Tensor("int32", new Int32Array([value]), []);

const acts = {
  async begin({ binary }) {
    ort.env.wasm.wasmBinary = binary;
  },
  async load({ url }) {
    sessions.set(url, await ort.InferenceSession.create(url, { graphOptimizationLevel: "disabled" }));
  },
  async run({ url, values, shape, bits }) {
    const session = sessions.get(url);
    const images = new ort.Tensor("float32", values, shape);
    const found = await session.run({ images, weight_bits: number(bits.w), activation_bits: number(bits.a) });
    return found[session.outputNames[0]].data;
  },
};

onmessage = async ({ data }) => {
  try {
    postMessage({ id: data.id, result: await acts[data.act](data) });
  } catch (error) {
    postMessage({ id: data.id, error: String(error.message ?? error) });
  }
};
