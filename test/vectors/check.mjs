// Runs vector files (README.md) through an opener that is given the DEK: the "warm" classes, as far as it can see them.
import { readFileSync } from 'node:fs';

// An opener without configuration cannot know which KEKs a tenant may use.
const invisible = 'kek-not-allowed';
const classes = ['ok', 'malformed', 'unsupported', 'authentication-failed', 'invalid-tenant', 'invalid-context', invisible];
const hex = (s) => Buffer.from(s, 'hex');
const bytes = (x) => (typeof x === 'string' ? Buffer.from(x, 'utf8') : hex(x.hex));
const plain = (p) => (p.hex !== undefined ? hex(p.hex) : Buffer.from(Array.from({ length: p.pattern }, (_, i) => i % 251)));

export function check(paths, open, Refusal) {
  const files = paths.map((p) => JSON.parse(readFileSync(p, 'utf8')));
  const all = (type) => files.filter((f) => f.type === type).flatMap((f) => f.vectors);
  const spki = Object.fromEntries(files.filter((f) => f.type === 'keys').flatMap((f) => f.signers).map((s) => [s.name, hex(s.spki)]));
  const count = { checked: 0, invisible: 0, wrong: 0 };

  const one = (v, name, sealed, want) => {
    if (!classes.includes(want)) throw new Error(`${name}: unknown class ${want}`);
    count.checked++;
    let got = 'ok', plaintext;
    try {
      const signers = v.signers.map((s) => spki[s]);
      plaintext = open({ dek: hex(v.dek), tenant: v.tenant, context: v.context.map((p) => p.map(bytes)), signers, sealed });
    } catch (e) {
      if (!(e instanceof Refusal)) throw e;
      got = e.message;
    }
    if (got === want && (got !== 'ok' || plaintext.equals(v.plain))) return;
    count.wrong++;
    console.error(`${name}: ${got}, want ${want}`);
  };

  const vectors = all('open');
  for (const v of vectors) {
    v.plain = v.plaintext && plain(v.plaintext);
    if (v.warm === invisible) count.invisible++;
    else one(v, v.name, hex(v.sealed), v.warm);
  }
  for (const m of all('mutations')) {
    const v = vectors.find((x) => x.name === m.base), sealed = hex(v.sealed);
    for (const p of m.prefixes) for (let n = p.from; n <= p.to; n++) one(v, `${m.base} prefix ${n}`, sealed.subarray(0, n), p.warm);
    for (const f of m.fields.flatMap((x) => x.flips)) {
      for (let i = f.offset; i < f.offset + f.length; i++) {
        for (let bit = 1; bit < 256; bit <<= 1) {
          if (!(parseInt(f.mask, 16) & bit)) continue;
          const flipped = Buffer.from(sealed);
          flipped[i] ^= bit;
          // In these values nothing but the check of the KEK depends on kek_ref.
          one(v, `${m.base} byte ${i} bit ${bit}`, flipped, f.warm === invisible ? 'ok' : f.warm);
        }
      }
    }
  }
  console.log(`${count.checked} checked, ${count.wrong} wrong; ${count.invisible} not visible to an opener without configuration`);
  if (count.checked === 0 || count.wrong > 0) process.exitCode = 1;
}
