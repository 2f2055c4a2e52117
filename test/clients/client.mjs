// Checks a keysidecar from Node. For your own program:
//
//   npm install @grpc/grpc-js @grpc/proto-loader
//
//   const proto = loadSync('proto/keysidecar/v1/seal.proto', { keepCase: true, defaults: true });
//   const { SealService } = grpc.loadPackageDefinition(proto).keysidecar.v1;
//   const keysidecar = new SealService('unix:///run/keysidecar/keysidecar.sock', grpc.credentials.createInsecure());
//   const encryption_context = { table: 'invoices', column: 'notes', id: '4711' };
//   const options = { deadline: Date.now() + 6000 };
//   keysidecar.Seal({ tenant: 'acme', plaintext, encryption_context }, options, (error, answer) => ...);  // answer.sealed
//   keysidecar.Unseal({ tenant: 'acme', sealed, encryption_context }, options, (error, answer) => ...);
//
// Keep the client: it connects again by itself. Give every call a deadline: a data key that is not in memory may take
// 5 s. Decide by the reason of an error (docs/errors.md), which explain shows how to read, and never by its text.
//
// Usage: node client.mjs SEAL.PROTO DIR PEER...   checks everything, and opens what the peers have sealed
import grpc from '@grpc/grpc-js';
import { fromJSON, loadSync } from '@grpc/proto-loader';
import protobuf from 'protobufjs';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';

const { INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, NOT_FOUND, UNAVAILABLE } = grpc.status;
const CONTEXT = { Straße: 'Größe 12 µm', 名前: '値', key: '🔑', empty: '' };
const SIZES = [0, 1, 65536, 1048576];
const ME = 'node';
const [seal, dir, ...peers] = process.argv.slice(2);

// What keysidecar uses of google/rpc/status.proto, google/rpc/error_details.proto and grpc/health/v1/health.proto.
const google = protobuf.parse(`syntax = "proto3"; package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }`, { keepCase: true }).root.lookup('google.rpc');
const healthProto = protobuf.parse(`syntax = "proto3"; package grpc.health.v1;
  message HealthCheckRequest { string service = 1; }
  message HealthCheckResponse { enum ServingStatus { UNKNOWN = 0; SERVING = 1; } ServingStatus status = 1; }
  service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }`).root.toJSON();

const { SealService } = grpc.loadPackageDefinition(loadSync(seal, { keepCase: true, defaults: true })).keysidecar.v1;
const { Health } = grpc.loadPackageDefinition(fromJSON(healthProto, { enums: String, defaults: true })).grpc.health.v1;

// Returns what the sidecar says in an error besides its code: a reason, and when to try again.
function explain(error) {
  const told = { code: error.code, trailers: error.metadata.getMap() };
  const [encoded] = error.metadata.get('grpc-status-details-bin');
  for (const { type_url, value } of encoded ? google.Status.decode(encoded).details : []) {
    if (type_url === 'type.googleapis.com/google.rpc.ErrorInfo') {
      const info = google.ErrorInfo.decode(value);
      if (info.domain === 'keysidecar') Object.assign(told, { reason: info.reason, requestID: info.metadata.request_id });
    } else if (type_url === 'type.googleapis.com/google.rpc.RetryInfo') {
      const delay = google.RetryInfo.decode(value).retry_delay;
      told.retryAfter = Number(delay.seconds) + delay.nanos / 1e9;
    }
  }
  return told;
}

let checks = 0;
function check(what, got, want = true) {
  checks++;
  if (isDeepStrictEqual(got, want)) return;
  const text = (v) => String(JSON.stringify(v)).slice(0, 200);
  console.error(`client.mjs: ${what}: got ${text(got)}, want ${text(want)}`);
  process.exit(1);
}

// Returns what a call's error explains; the call has to end with one.
async function refusal(what, promise) {
  const error = await promise.then(() => null, (e) => e);
  check(`${what}: refused`, error !== null);
  return explain(error);
}

// SealService and Health over one channel with a connection of its own.
class Client {
  constructor(target, options = {}) {
    const channel = { 'grpc.use_local_subchannel_pool': 1 };
    for (const [name, value] of Object.entries(options)) channel[`grpc.${name}`] = value;
    this.rpc = new SealService(target, grpc.credentials.createInsecure(), channel);
    this.probe = new Health(target, grpc.credentials.createInsecure(), { channelOverride: this.rpc.getChannel() });
  }

  call(stub, method, request, { timeout = 6000, waitForReady = false } = {}) {
    return new Promise((resolve, reject) => {
      const done = (error, answer) => (error ? reject(error) : resolve(answer));
      stub[method](request, new grpc.Metadata({ waitForReady }), { deadline: Date.now() + timeout }, done);
    });
  }

  seal(plaintext, { tenant = 'acme', context = CONTEXT, ...options } = {}) {
    return this.call(this.rpc, 'Seal', { tenant, plaintext, encryption_context: context }, options);
  }

  async unseal(sealed, { tenant = 'acme', context = CONTEXT, ...options } = {}) {
    return (await this.call(this.rpc, 'Unseal', { tenant, sealed, encryption_context: context }, options)).plaintext;
  }

  async reopens() { // seals and opens something
    const data = Buffer.from('data');
    return data.equals(await this.unseal((await this.seal(data)).sealed));
  }

  async status(service) { return (await this.call(this.probe, 'Check', { service })).status; }

  close() { this.rpc.close(); }
}

function plaintext(size) {
  const data = readFileSync(`${dir}/data/plain-${size}`);
  check(`length of plain-${size}`, data.length, size);
  return data;
}

// Every way to write the target, and every :authority: of itself grpc-js sends localhost, C-core the path.
async function roundTrips(socket) {
  const path = encodeURIComponent(socket.slice(1));
  const clients = {
    'unix:/path': new Client(`unix:${socket}`),
    'unix:///path': new Client(`unix://${socket}`),
    'authority path': new Client(`unix:${socket}`, { default_authority: path }),
    'authority /path': new Client(`unix:${socket}`, { default_authority: `%2F${path}` }),
  };
  for (const [name, client] of Object.entries(clients)) {
    for (const size of SIZES) {
      const data = plaintext(size);
      const { sealed, key_info } = await client.seal(data);
      check(`${name}: KEK of ${size} B`, key_info.kek_ref, 'acme');
      check(`${name}: DEK ID of ${size} B`, key_info.dek_id.length, 16);
      check(`${name}: ${size} B opened`, data.equals(await client.unseal(sealed)));
      writeFileSync(`${dir}/data/${ME}-${size}`, sealed);
    }
    client.close();
  }
}

async function openPeers(client) {
  for (const peer of peers) {
    for (const size of SIZES) {
      const opened = await client.unseal(readFileSync(`${dir}/data/${peer}-${size}`));
      check(`${peer}'s ${size} B opened`, plaintext(size).equals(opened));
    }
  }
}

async function errors(client) {
  const { sealed } = await client.seal(Buffer.from('data'), { context: { name: 'Zo\u00eb' } });
  check('right context', (await client.unseal(sealed, { context: { name: 'Zo\u00eb' } })).toString(), 'data');
  const wrong = { decomposed: { name: 'Zoe\u0308' }, more: { name: 'Zo\u00eb', a: '' }, none: {} };
  for (const [name, context] of Object.entries(wrong)) {
    const r = await refusal(name, client.unseal(sealed, { context }));
    check(`${name} context`, [r.code, r.reason, r.retryAfter], [INVALID_ARGUMENT, 'AUTHENTICATION_FAILED', undefined]);
    check(`${name} context: request id`, r.requestID?.length > 0 && r.requestID === r.trailers.request_id);
  }
  for (const tenant of ['denied', 'absent']) {
    const r = await refusal(tenant, client.seal(Buffer.alloc(0), { tenant }));
    check(`${tenant} tenant`, [r.code, r.reason], [PERMISSION_DENIED, 'PERMISSION_DENIED']);
  }
  for (const [size, reason] of [[1048577, 'TOO_LARGE'], [4 << 20, undefined]]) { // the second is gRPC's own answer
    const r = await refusal(size, client.seal(Buffer.alloc(size)));
    check(`${size} B`, [r.code, r.reason, r.retryAfter], [RESOURCE_EXHAUSTED, reason, undefined]);
  }
  check('open after errors', await client.reopens());
}

// Counts the calls that a sidecar's log says it refused for a reason.
function answers(sidecar, reason) {
  const lines = readFileSync(`${dir}/${sidecar}/log`, 'utf8').trim().split('\n');
  return lines.filter((line) => JSON.parse(line).reason === reason).length;
}

// Over a rate: refused at once, told when to come back, and not repeated by a retryPolicy.
async function rates() {
  const retryPolicy = { maxAttempts: 4, initialBackoff: '0.02s', maxBackoff: '0.05s', backoffMultiplier: 1,
    retryableStatusCodes: ['RESOURCE_EXHAUSTED', 'PERMISSION_DENIED'] };
  const service_config = JSON.stringify({ methodConfig: [{ name: [{ service: 'keysidecar.v1.SealService' }], retryPolicy }] });
  const client = new Client(`unix:${dir}/main/s`, { service_config });
  let before = answers('main', 'PERMISSION_DENIED');
  await refusal('denied, with retries', client.seal(Buffer.alloc(0), { tenant: 'denied' }));
  check('the retryPolicy works', answers('main', 'PERMISSION_DENIED') - before, 4);

  const limited = new Client(`unix:${dir}/limited/s`, { service_config });
  for (const [sidecar, c, tenant] of [['main', client, `slow-${ME}`], ['limited', limited, 'acme']]) {
    await c.seal(Buffer.alloc(0), { tenant }).catch(() => {}); // uses what is left of the burst
    for (const size of [0, 1048576]) {
      before = answers(sidecar, 'RATE_LIMITED');
      const r = await refusal('over the rate', c.seal(Buffer.alloc(size), { tenant }));
      check(`${sidecar}: over the rate`, [r.code, r.reason], [RESOURCE_EXHAUSTED, 'RATE_LIMITED']);
      check(`${sidecar}: RetryInfo ${r.retryAfter}`, r.retryAfter > 0 && r.retryAfter <= 1000);
      check(`${sidecar}: pushback`, r.trailers['grpc-retry-pushback-ms'], '-1');
      check(`${sidecar}: answers`, answers(sidecar, 'RATE_LIMITED') - before, 1);
    }
  }
  check('health over the rate', await limited.status(''), 'SERVING');
  client.close();
  limited.close();
}

async function health(client) {
  for (const service of ['', 'keysidecar.v1.SealService']) check(`health of ${service}`, await client.status(service), 'SERVING');
  check('health of an unknown service', (await refusal('health', client.status('unknown'))).code, NOT_FOUND);
}

async function concurrent(client) {
  const data = Array.from({ length: 50 }, (_, i) => Buffer.from(`${i} `.repeat(5000)));
  const context = (i) => ({ id: String(i) });
  const sealed = await Promise.all(data.map((d, i) => client.seal(d, { context: context(i), timeout: 30000 })));
  const opened = await Promise.all(sealed.map((s, i) => client.unseal(s.sealed, { context: context(i), timeout: 30000 })));
  check('50 at a time', opened.every((o, i) => o.equals(data[i])));
}

const processID = () => Number(readFileSync(`${dir}/main/pid`, 'utf8'));

const states = (pid) => readdirSync(`/proc/${pid}/task`) // proc(5)
  .map((thread) => readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8').split(') ').at(-1)[0]);

async function until(what, condition) {
  for (const end = Date.now() + 20000; !condition(); await sleep(10)) {
    if (Date.now() > end) check(`${what} within 20 s`, false);
  }
}

// A sidecar that is stopped holds nobody up, and goes on.
async function deadline(client) {
  const pid = processID();
  process.kill(pid, 'SIGSTOP');
  await until('stopped', () => states(pid).every((state) => state === 'T'));
  const start = Date.now();
  const r = await refusal('deadline', client.seal(Buffer.from('data'), { timeout: 500 }));
  const took = Date.now() - start;
  process.kill(pid, 'SIGCONT');
  check('deadline', [r.code, r.reason], [DEADLINE_EXCEEDED, undefined]);
  check(`deadline after ${took} ms`, took > 400 && took < 3000);
  check('after the deadline', await client.reopens());
}

// The channel finds the sidecar that comes after one that ends, or is killed.
async function restarts(client) {
  for (const signal of ['SIGTERM', 'SIGKILL']) {
    const { sealed } = await client.seal(Buffer.from('data'));
    const pid = processID();
    process.kill(pid, signal);
    await until(`another process after ${signal}`, () => processID() !== pid);
    const again = () => client.unseal(sealed, { waitForReady: true, timeout: 20000 });
    const opened = await again().catch((error) => { // the channel had not seen that the connection was lost
      check(`first call after ${signal}`, error.code, UNAVAILABLE);
      return again();
    });
    check(`after ${signal}`, opened.toString(), 'data');
  }
}

const client = new Client(`unix:${dir}/main/s`);
await openPeers(client);
await roundTrips(`${dir}/main/s`);
for (const part of [errors, health, rates, concurrent, deadline, restarts]) await part(client);
client.close();
const { version } = createRequire(import.meta.url)('@grpc/grpc-js/package.json');
console.log(`  Node, grpc-js ${version}: ${checks} checks: sealed data of ${peers.join(' and ')}, round trips, authorities, ` +
  'errors, health, rates, 50 at a time, deadline, restarts');
