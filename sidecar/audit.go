package sidecar

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keysidecar/keysidecar/audit"
	"github.com/keysidecar/keysidecar/audit/record"
	"github.com/keysidecar/keysidecar/audit/segments"
	"github.com/keysidecar/keysidecar/config"
	"github.com/keysidecar/keysidecar/dek"
	"github.com/keysidecar/keysidecar/kek"
	"github.com/keysidecar/keysidecar/policy"
	keysidecarv1 "github.com/keysidecar/keysidecar/proto/keysidecar/v1"
	"github.com/keysidecar/keysidecar/sealer"
	"github.com/keysidecar/keysidecar/server"
	"github.com/keysidecar/keysidecar/tenant"
)

// auditor turns what happens into records. The zero auditor records nothing.
type auditor struct {
	log  *audit.Log // nil: none
	full bool       // for tenants that do not say
}

// buildAudit opens the log. Without its first record nothing is served.
func (s *Sidecar) buildAudit(opts Options) error {
	c := &s.cfg.Audit
	for _, w := range s.cfg.Warnings() {
		s.log.LogAttrs(context.Background(), slog.LevelWarn, "configuration", slog.String("warning", w))
	}
	if c.Sink == "none" {
		return nil
	}
	host, _ := os.Hostname() // else the log has no name
	origin := audit.NewOrigin(cmp.Or(c.Name, host), s.started)
	start := &record.Event{Version: s.version, Files: hashes(s.cfg)}
	sink, others, err := s.auditSink(opts.AuditTo, origin, start)
	if err != nil {
		return err
	}
	s.audit.full = c.Mode() == tenant.AuditFull
	s.audit.log, err = audit.New(audit.Config{
		Log: origin, Sink: sink, Logger: s.log, Interval: c.Interval, CheckpointInterval: c.CheckpointInterval,
		WriteTimeout: c.WriteTimeout, Rows: c.Rows, DenialsPerMinute: c.DenialsPerMinute,
	}, start, others...)
	if err != nil {
		return fmt.Errorf("opening the audit log: %w", err)
	}
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "audit log begun",
		slog.String("log", origin), slog.String("key", s.audit.log.Key()), slog.String("sink", c.Sink))
	return nil
}

// auditSink opens the sink. It adds to start how far the log before went, and
// returns what has to be recorded of that besides.
func (s *Sidecar) auditSink(to io.Writer, origin string, start *record.Event) (audit.Sink, []*record.Event, error) {
	c := &s.cfg.Audit
	if c.Sink != "dir" {
		if to == nil {
			to = io.Discard
		}
		return audit.NewStream(to), nil, nil
	}
	dir, err := segments.Open(segments.Config{
		Path: c.Dir, Log: origin, SegmentBytes: int64(c.SegmentBytes), MaxBytes: int64(c.MaxBytes),
		Retention: segments.Retention(c.Retention), Logger: s.log,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("audit.dir: %w", err)
	}
	s.auditDir = dir
	s.pruneAudit(context.Background()) // first: there may be no room for the first record
	before, ok := dir.Previous()
	if !ok {
		return dir, nil, nil
	}
	start.Log, start.Size, start.Root = before.Log, before.Size, base64.StdEncoding.EncodeToString(before.Root[:])
	if before.Ended && before.Damage == "" {
		return dir, nil, nil
	}
	gap := &record.Event{
		Kind: record.Unaccounted, Log: before.Log, Size: before.Size, From: before.Counted, To: s.started, Detail: before.Damage,
	}
	if before.Torn > 0 {
		gap.Detail = fmt.Sprintf("%d bytes of an unfinished record were cut off; %s", before.Torn, before.Damage)
	}
	s.log.LogAttrs(context.Background(), slog.LevelWarn, "the sidecar before did not end its audit log: its last operations may be missing",
		slog.String("log", before.Log), slog.Time("from", gap.From), slog.Time("to", gap.To), slog.String("detail", gap.Detail))
	return dir, []*record.Event{gap}, nil
}

// hashes returns the hashes of the configuration files as they are now.
func hashes(cfg *config.Config) map[string]string {
	files := make(map[string]string)
	for _, name := range append(cfg.Files(), cfg.Path) {
		if name == cfg.Listen.TCP.KeyFile || name == "" {
			continue // a hash of a private key is nobody's business
		}
		data, err := os.ReadFile(name)
		if err != nil {
			files[name] = "unreadable"
			continue
		}
		sum := sha256.Sum256(data)
		files[name] = hex.EncodeToString(sum[:])
	}
	return files
}

// from fills in who asked.
func from(e *record.Event, name string, c policy.Caller) *record.Event {
	e.Caller, e.Identity, e.PID = name, c.Name, c.PID
	return e
}

// used fills in the keys.
func used(e *record.Event, k dek.Info) *record.Event {
	if k.ID != (dek.Info{}).ID {
		e.DEK = k.ID.String()
	}
	e.KEK, e.Region = k.KEKRef, k.Region
	if !k.KEKVersion.IsZero() {
		e.KEKVersion = k.KEKVersion.String()
	}
	return e
}

// operation is sealer.Config.Record.
func (a *auditor) operation(ctx context.Context, e sealer.Event) error {
	switch {
	case a.log == nil:
		return nil
	case e.Reason.Denial():
		return a.log.Denied(ctx, call(ctx, record.Denied, &e))
	case e.Audit == tenant.AuditFull, e.Audit == tenant.AuditDefault && a.full:
		return a.log.Append(ctx, record.Data, call(ctx, record.Call, &e))
	}
	a.log.Count(audit.Row{
		Class: record.Data, Caller: e.CallerName, Tenant: e.Tenant, Verb: e.Verb.String(), Result: resultOf(&e),
	}, int64(e.Bytes))
	return nil
}

func call(ctx context.Context, kind record.Kind, e *sealer.Event) *record.Event {
	out := from(&record.Event{
		Kind: kind, Tenant: e.Tenant, Verb: e.Verb.String(), Result: resultOf(e), Request: server.CallOf(ctx).ID(),
		Bytes: int64(e.Bytes), Context: e.Context,
	}, e.CallerName, e.Caller)
	if e.InputBytes > 0 {
		out.InputBytes, out.InputSHA256 = int64(e.InputBytes), hex.EncodeToString(e.InputSum[:])
	}
	return used(out, e.Key)
}

// resultOf returns how an operation ended, in a word.
func resultOf(e *sealer.Event) string {
	switch {
	case e.Err == nil || e.Reason != sealer.OK:
		return e.Reason.String()
	case errors.Is(e.Err, context.Canceled):
		return "CANCELLED"
	case errors.Is(e.Err, context.DeadlineExceeded):
		return "DEADLINE_EXCEEDED"
	}
	return "INTERNAL"
}

// refusal is server.Config.Refused, after the metrics.
func (a *auditor) refusal(ctx context.Context, r sealer.Reason) error {
	if a.log == nil {
		return nil
	}
	c := server.CallOf(ctx)
	verb := ""
	if c.Verb != 0 {
		verb = c.Verb.String()
	}
	if !r.Denial() {
		a.log.Count(audit.Row{Class: record.Data, Caller: c.CallerName, Verb: verb, Result: r.String()}, 0)
		return nil
	}
	return a.log.Denied(ctx, from(&record.Event{
		Kind: record.Denied, Verb: verb, Result: r.String(), Request: c.ID(),
	}, c.CallerName, c.Caller))
}

// key is dek.Config.Record. What is fenced is fenced whether or not it can be
// recorded.
func (a *auditor) key(ctx context.Context, e dek.Event) error {
	if a.log == nil {
		return nil
	}
	out := used(&record.Event{Kind: record.KeyStep, Step: e.Kind.String(), Tenant: e.Tenant.String()}, e.Info)
	if e.Kind == dek.Fenced {
		out.Tenant, out.Result = "", e.Reason.String()
		a.log.Note(record.Keys, out)
		return nil
	}
	return a.log.Append(ctx, record.Keys, out)
}

// operator returns the record of an operator's call.
func operator(ctx context.Context, did, tenantID, result, detail string) *record.Event {
	c := server.CallOf(ctx)
	return from(&record.Event{
		Kind: record.Admin, Did: did, Verb: c.Verb.String(), Tenant: tenantID, Result: result, Request: c.ID(), Detail: detail,
	}, c.CallerName, c.Caller)
}

// did records what an operator did, when that may not be held up.
func (a *auditor) did(ctx context.Context, did, tenantID, result, detail string) {
	if a.log != nil {
		a.log.Note(record.Keys, operator(ctx, did, tenantID, result, detail))
	}
}

// willDo records what an operator is about to do, which must not happen if that
// fails.
func (a *auditor) willDo(ctx context.Context, did, tenantID, detail string) error {
	if a.log == nil {
		return nil
	}
	return unavailable(a.log.Append(ctx, record.Keys, operator(ctx, did, tenantID, "", detail)))
}

// looked counts a call of an operator who changed nothing.
func (a *auditor) looked(ctx context.Context) {
	if a.log != nil {
		c := server.CallOf(ctx)
		a.log.Count(audit.Row{Class: record.Data, Caller: c.CallerName, Verb: c.Verb.String(), Result: sealer.OK.String()}, 0)
	}
}

// denied records that an operator was refused, and returns the refusal.
func (a *auditor) denied(ctx context.Context, r sealer.Reason, tenantID string, cause error) error {
	if a.log != nil {
		c := server.CallOf(ctx)
		err := a.log.Denied(ctx, from(&record.Event{
			Kind: record.Denied, Tenant: tenantID, Verb: c.Verb.String(), Result: r.String(), Request: c.ID(),
		}, c.CallerName, c.Caller))
		if err != nil {
			return unavailable(err)
		}
	}
	return sealer.NewError(r, cause)
}

// willReload records that files are about to take effect.
func (a *auditor) willReload(ctx context.Context, cfg *config.Config) error {
	if a.log == nil {
		return nil
	}
	return a.log.Append(ctx, record.Keys, &record.Event{Kind: record.Reload, Result: sealer.OK.String(), Files: hashes(cfg)})
}

// notReloaded records that files were refused.
func (a *auditor) notReloaded(cfg *config.Config, err error) {
	if a.log != nil {
		a.log.Note(record.Keys, &record.Event{
			Kind: record.Reload, Result: "REFUSED", Files: hashes(cfg), Detail: fmt.Sprintf("%.1000s", err.Error()),
		})
	}
}

func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return sealer.NewError(sealer.AuditUnavailable, err)
}

// What is kept up while the sidecar runs.
const (
	pruneInterval = time.Hour
	certifyFirst  = time.Second // to the second attempt
	certifyMost   = time.Minute
)

// keepAudit has the log's key certified, and removes what need not be kept any
// longer, until ctx ends.
func (s *Sidecar) keepAudit(ctx context.Context) {
	if s.audit.log == nil {
		return
	}
	certify := time.NewTimer(0)
	defer certify.Stop()
	key, wanted := s.cfg.Audit.SignerKey()
	if !wanted {
		certify.Stop()
	}
	prune := time.NewTicker(pruneInterval)
	defer prune.Stop()
	for wait := certifyFirst; ; {
		select {
		case <-ctx.Done():
			return
		case <-certify.C:
			err := s.certify(ctx, key)
			if err == nil {
				continue
			}
			s.log.LogAttrs(ctx, slog.LevelError, "audit log's key not certified: see audit.signer",
				slog.String("log", s.audit.log.Origin()), slog.Duration("again_in", wait), slog.Any("cause", err))
			certify.Reset(wait)
			wait = min(2*wait, certifyMost)
		case <-prune.C:
			s.pruneAudit(ctx)
		}
	}
}

func (s *Sidecar) pruneAudit(ctx context.Context) {
	if s.auditDir == nil {
		return
	}
	removed, err := s.auditDir.Prune(time.Now())
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelError, "audit records not removed whose time is over: see audit.dir", slog.Any("cause", err))
	} else if removed.Events > 0 || removed.Files > 0 {
		s.log.LogAttrs(ctx, slog.LevelInfo, "audit records removed whose time is over",
			slog.Int64("events", removed.Events), slog.Int("files", removed.Files))
	}
}

func (s *Sidecar) addAuditStatus(out *keysidecarv1.GetStatusResponse) {
	if s.audit.log == nil {
		return
	}
	stats := s.audit.log.Stats()
	out.AuditLog, out.AuditKey, out.AuditRecords = s.audit.log.Origin(), s.audit.log.Key(), count64(stats.Records)
	if !stats.Failing.IsZero() {
		out.AuditFailingSince = timestamppb.New(stats.Failing)
	}
}

// auditStats is for metrics.
func (s *Sidecar) auditStats() audit.Stats {
	if s.audit.log == nil {
		return audit.Stats{}
	}
	return s.audit.log.Stats()
}

// closeAudit ends the log, after all that is recorded in it.
func (s *Sidecar) closeAudit() error {
	if s.audit.log == nil {
		if s.auditDir != nil {
			return s.auditDir.Close()
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*s.cfg.Audit.WriteTimeout)
	defer cancel()
	if err := s.audit.log.Close(ctx); err != nil {
		return fmt.Errorf("the end of audit log %s is not written: %w", s.audit.log.Origin(), err)
	}
	return nil
}

// certify has Key Vault sign the log's key.
func (s *Sidecar) certify(ctx context.Context, key kek.Key) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.KeyVault.LoadTimeout)
	defer cancel()
	c := record.Certificate{Key: s.audit.log.Key(), Time: time.Now().UTC().Truncate(time.Second)}
	signature, err := s.vaults.Sign(ctx, key, c.Digest())
	if err != nil {
		return err
	}
	signed, err := c.Sign(signature.Name, signature.Public, signature.RS)
	if err != nil {
		return err
	}
	return s.audit.log.Certify(ctx, signed)
}
