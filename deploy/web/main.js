// Asks by gRPC-Web and shows the answer as it comes; docs/http.md tells how to build and serve this.
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { ErrorInfoSchema } from "./build/contract/google/rpc/error_details_pb.js";
import { FinishReason, GenerationService } from "./build/contract/tokenwire/v1/generation_service_pb.js";

const [form, output, state] = ["form", "output", "#state"].map((name) => document.querySelector(name));
let asking = new AbortController();

async function ask(baseUrl, prompt, signal) {
  const client = createClient(GenerationService, createGrpcWebTransport({ baseUrl }));
  for await (const { event } of client.generate({ prompt }, { signal })) {
    if (event.case === "text") output.textContent += event.value;
    if (event.case === "completed") state.textContent = `Done: ${FinishReason[event.value.finishReason]}`;
  }
}

// The status, and from its details the reason, which programs go by, with what else is known, such as `last_sequence`.
function words(error) {
  const { code, rawMessage } = error;
  const told = error.findDetails(ErrorInfoSchema).map((info) => `${info.reason} ${JSON.stringify(info.metadata)}`);
  return [`Failed: ${Code[code]}`, ...told, rawMessage].join(" - ");
}

form.onsubmit = async (event) => {
  event.preventDefault();
  asking.abort();
  const { signal } = (asking = new AbortController());
  output.textContent = state.textContent = "";
  try {
    await ask(form.service.value, form.prompt.value, signal);
  } catch (error) {
    if (signal === asking.signal) state.textContent = signal.aborted ? "Stopped" : words(ConnectError.from(error));
  }
};
// Of a closed tab the browser ends the calls, but not of a page that was left: that is kept as it is, for "back".
document.querySelector("#stop").onclick = window.onpagehide = () => asking.abort();
