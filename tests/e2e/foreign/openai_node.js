// What the README of OpenAI's client for Node shows, unchanged but for the model's name. OPENAI_BASE_URL says where to.
import OpenAI from "openai";

const client = new OpenAI();
const [model] = process.argv.slice(2);
const messages = [{ role: "user", content: "Say this is a test" }];
const said = {};

const completion = await client.chat.completions.create({ model, messages, max_completion_tokens: 20, seed: 1 });
said.whole = completion.choices[0].message.content;

said.streamed = "";
const stream = await client.chat.completions.create({
  model,
  messages,
  max_completion_tokens: 20,
  seed: 1,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  said.streamed += chunk.choices[0]?.delta?.content ?? "";
  said.tokens = chunk.usage?.completion_tokens ?? said.tokens;
}

const runner = client.chat.completions.stream({ model, messages, max_completion_tokens: 20, seed: 1 });
said.final = await runner.finalContent();

const response = await client.responses.create({ model, input: "Say this is a test", max_output_tokens: 5 });
said.response = response.output_text;

said.models = [];
for await (const one of client.models.list()) said.models.push(one.id);

try {
  await client.chat.completions.create({ model: "none", messages });
} catch (error) {
  said.refused = [error instanceof OpenAI.NotFoundError, error.status, error.code, error.requestID !== null];
}

const { data, request_id: id } = await client.chat.completions
  .create({ model, messages, max_completion_tokens: 1 })
  .withResponse();
said.named = [data.object, id !== null];

const leaving = await client.chat.completions.create({ model, messages, max_completion_tokens: 400, stream: true });
for await (const chunk of leaving) {
  if (chunk.choices[0]?.delta?.content) break; // the stream is ended by that
}
console.log(JSON.stringify(said));
