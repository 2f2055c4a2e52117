package auditcmd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keysidecar/keysidecar/audit/verify"
)

// advise says how many problems there are of each kind, and what to do.
func advise(b *strings.Builder, r *verify.Report) {
	count := make(map[verify.Kind]int)
	var kinds []verify.Kind
	for i := range r.Problems {
		kind := r.Problems[i].Kind
		if count[kind]++; count[kind] == 1 {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	b.WriteString("problems by kind:\n")
	for _, kind := range kinds {
		fmt.Fprintf(b, "  %d %s: %s\n", count[kind], shown(string(kind)), advice(kind))
	}
	b.WriteString("what to do:\n" +
		"  copy the directory as it is, before retention or anybody else changes it, and keep the copy\n" +
		"  verify the collector's copy of the same logs: where the two differ, the records were changed\n")
	for i := range r.Logs {
		l := &r.Logs[i]
		if slices.ContainsFunc(r.Problems, func(f verify.Finding) bool { return f.Log == l.Log }) {
			fmt.Fprintf(b, "  last good checkpoint of %s: %s kept elsewhere, %s of its own\n",
				shown(l.Log), sized(l.Outside), sized(l.Signed))
		}
	}
}

// sized names the checkpoint of that many records.
func sized(size int64) string {
	if size == 0 {
		return "none"
	}
	return "that of " + number(size, "record")
}

// advice says what a problem comes from, and what to look at.
func advice(kind verify.Kind) string {
	switch kind {
	case verify.Cut, verify.Missing, verify.MissingLog, verify.PrunedEarly, verify.BadBegin:
		return "records were removed: look for them in the collector's copy or a backup"
	case verify.BadKey, verify.Unvouched, verify.BadCertificate, verify.OutsideForged, verify.TwoRoots, verify.NeverSigned:
		return "another key, or none, has signed: find out which of log, key and checkpoints is forged"
	case verify.Unproved, verify.OutsideUnchecked:
		return "the checkpoints kept elsewhere are behind: see that they are collected, and give the newest"
	case verify.ClockBack:
		return "times cannot be relied on: look at the machine's clock, or records were put together"
	case verify.UnsignedTail:
		return "the last records may be made up: a log that a sidecar writes has a checkpoint soon, verify again"
	}
	return "records were changed, or others put among them: trust none after the last good checkpoint"
}
