// Opens keysidecar's sealed data, given the DEK: SPEC.md with Node's crypto and nothing else.
//   node open.mjs FILE.json...      checks vector files (keys.json among them); exit 1 on any disagreement
//   node open.mjs --dek HEX --tenant T [--context k=v]... [--signer SPKI-HEX]... FILE   plaintext to stdout
import { createDecipheriv, createHash, createHmac, createPublicKey, timingSafeEqual, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';

class Refusal extends Error {}
const refuse = (c) => { throw new Refusal(c); };
const need = (condition, c) => condition || refuse(c);
const cat = (...parts) => Buffer.concat(parts.map((p) => (typeof p === 'string' ? Buffer.from(p, 'utf8') : p)));
const hex = (s) => Buffer.from(s, 'hex');
const u8 = (n) => Buffer.from([n]);
const u16 = (n) => Buffer.from([n >> 8, n & 255]);
const lp16 = (b) => cat(u16(Buffer.byteLength(b)), b);

function expand(key, info, n) { // HKDF-Expand-SHA-512
  let out = Buffer.alloc(0);
  for (let t = out, i = 1; out.length < n; i++) {
    t = createHmac('sha512', key).update(t).update(info).update(u8(i)).digest();
    out = cat(out, t);
  }
  return out.subarray(0, n);
}

class Fields { // takes fields off the front of a buffer
  constructor(b) { this.rest = b; }
  take(n) {
    need(n <= this.rest.length, 'malformed');
    const b = this.rest.subarray(0, n);
    this.rest = this.rest.subarray(n);
    return b;
  }
  byte() { return this.take(1)[0]; }
  lp8() { return this.take(this.byte()); }
  lp16() { return this.take(this.take(2).readUInt16BE()); }
}

// Section 2. latin1 keeps bytes apart that are not ASCII.
const isTenant = (s) => /^[A-Za-z0-9]([A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?$/.test(s) && !s.includes('..');
const isRef = (s) => /^[a-z0-9-]{0,62}[a-z0-9]$/.test(s);

function encodeContext(pairs) { // section 3.3; pairs of buffers
  const valid = (b) => Buffer.compare(Buffer.from(b.toString('utf8'), 'utf8'), b) === 0;
  const sorted = [...pairs].sort((a, b) => Buffer.compare(a[0], b[0]));
  let sum = 0;
  sorted.forEach(([k, v], i) => {
    need(k.length >= 1 && k.length <= 255 && v.length <= 1024 && valid(k) && valid(v), 'invalid-context');
    need(!k.toString('latin1').startsWith('keysidecar.'), 'invalid-context');
    need(i === 0 || Buffer.compare(sorted[i - 1][0], k) !== 0, 'invalid-context');
    sum += k.length + v.length;
  });
  need(pairs.length <= 32 && sum <= 8192, 'invalid-context');
  return cat(u16(sorted.length), ...sorted.map(([k, v]) => cat(lp16(k), lp16(v))));
}

function parseBlock(raw) { // section 9, "A block"
  const f = new Fields(raw);
  need(f.byte() === 1, 'unsupported');
  const b = { kind: f.byte(), purpose: f.byte(), alg: f.byte(), keyID: f.take(16), created: f.take(8), tenant: f.lp8(),
    ref: f.lp8(), parent: f.take(16), wrapped: f.lp16(), proof: f.lp16() };
  need(f.rest.length === 0, 'malformed');
  need([1, 2].includes(b.kind) && b.purpose <= 1 && [1, 2, 3].includes(b.alg), 'unsupported');
  need((b.kind === 1) === (b.purpose === 1) && !(b.kind === 2 && b.alg === 3), 'malformed');
  need(isTenant(b.tenant.toString('latin1')) || (b.kind === 2 && b.tenant.length === 0), 'malformed');
  need(b.alg === 3 ? b.ref.length === 0 : isRef(b.ref.toString('latin1')), 'malformed');
  need({ 1: [256, 384, 512], 2: [40], 3: [60] }[b.alg].includes(b.wrapped.length), 'malformed');
  need(b.proof.length > 0 ? b.alg !== 3 : b.kind === 1, 'malformed');
  if (b.proof.length > 0) need(b.proof[0] === 1, 'unsupported') && need(b.proof.length === 81, 'malformed');
  return b;
}

function checkBlocks(blocks) { // section 7
  const deks = blocks.filter((b) => b.kind === 1), branches = blocks.filter((b) => b.kind === 2);
  need(deks.length >= 1 && deks.length <= 2 && branches.length <= 2, 'malformed');
  need(blocks.every((b, i) => b.kind === (i < deks.length ? 1 : 2)), 'malformed');
  const named = branches.map((b) => deks.findIndex((d) => d.alg === 3 && d.parent.equals(b.keyID)));
  need(named.every((n, i) => n >= 0 && (i === 0 || named[i - 1] <= n)), 'malformed');
  need(new Set(blocks.map((b) => [b.keyID, b.parent, b.ref].map((x) => x.toString('hex')).join())).size === blocks.length, 'malformed');
}

function parse(sealed) { // section 9
  const f = new Fields(sealed), blocks = [];
  if (sealed.subarray(0, 3).toString('latin1') === 'KSB') {
    f.take(3);
    need(f.byte() === 1, 'unsupported');
    const n = f.byte();
    need(n >= 1 && n <= 4, 'malformed');
    blocks.push(...Array.from({ length: n }, () => f.lp16()).map(parseBlock));
    checkBlocks(blocks);
  }
  const envelope = f.rest;
  need(f.take(3).toString('latin1') === 'KSE', 'malformed');
  need(f.byte() === 1, 'unsupported');
  const [suite, flags, ...dekID] = f.take(18);
  need(suite === 1 && flags === 0, 'unsupported');
  need(f.rest.length >= 56 && (f.rest.length - 56) % 16400 >= 16, 'malformed');
  return { blocks, header: envelope.subarray(0, 22), dekID: Buffer.from(dekID), body: f.rest };
}

function checkProof(b, signers) { // section 6.3
  const spki = signers.find((s) => createHash('sha256').update(s).digest().subarray(0, 16).equals(b.proof.subarray(1, 17)));
  const signed = cat('keysidecar/v1/proof\0', u8(b.kind), u8(b.purpose), b.keyID, b.created, u8(b.tenant.length), b.tenant);
  const key = spki && { key: createPublicKey({ key: spki, format: 'der', type: 'spki' }), dsaEncoding: 'ieee-p1363' };
  need(key && verify('sha256', signed, key, b.proof.subarray(17)), 'authentication-failed');
}

function open({ dek, tenant, context, signers, sealed }) { // section 10, "With the DEK in hand"
  need(isTenant(tenant), 'invalid-tenant');
  const encoded = encodeContext(context), no = 'authentication-failed';
  const s = parse(sealed);
  for (const b of s.blocks) {
    need(b.tenant.toString('latin1') === tenant || (b.kind === 2 && b.tenant.length === 0), no);
    need(b.kind === 2 || b.keyID.equals(s.dekID), no);
  }
  s.blocks.filter((b) => b.proof.length > 0).forEach((b) => checkProof(b, signers));
  need(dek.length === 32 && expand(dek, cat('keysidecar/v1/dek-id\0', u8(1), lp16(tenant)), 16).equals(s.dekID), no);
  const binding = cat('keysidecar/v1/seal\0', s.header, lp16(tenant), encoded);
  const okm = expand(dek, cat('c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0', s.body.subarray(0, 24), binding), 76);
  need(timingSafeEqual(okm.subarray(44), s.body.subarray(24, 56)), no);
  const out = [];
  for (let at = 56, i = 0; at < s.body.length; at += 16400, i++) {
    const chunk = s.body.subarray(at, at + 16400), nonce = Buffer.from(okm.subarray(32, 44));
    nonce.writeUInt32BE((nonce.readUInt32BE(8) ^ i) >>> 0, 8); // enough for 64 TiB
    const aead = createDecipheriv('aes-256-gcm', okm.subarray(0, 32), nonce).setAuthTag(chunk.subarray(-16));
    out.push(aead.update(chunk.subarray(0, -16)));
    try { aead.final(); } catch { refuse(no); }
  }
  return Buffer.concat(out);
}

const isMain = process.argv.length > 2 && process.argv[2].startsWith('--');
await (isMain ? cli(process.argv.slice(2)) : (await import('./check.mjs')).check(process.argv.slice(2), open, Refusal));

async function cli(args) {
  const o = { context: [], signers: [] };
  const sealed = readFileSync(args.pop());
  for (let i = 0; i < args.length; i += 2) {
    const [k, ...v] = (args[i + 1] ?? '').split('=');
    if (args[i] === '--context') o.context.push([Buffer.from(k), Buffer.from(v.join('='))]);
    else if (args[i] === '--signer') o.signers.push(hex(args[i + 1]));
    else o[args[i].slice(2)] = args[i + 1];
  }
  try {
    process.stdout.write(open({ ...o, dek: hex(o.dek), sealed }));
  } catch (e) {
    process.stderr.write(`${e instanceof Refusal ? e.message : e.stack}\n`);
    process.exitCode = 1;
  }
}
