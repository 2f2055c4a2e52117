package sidecar

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"sync/atomic"
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
	"github.com/keysidecar/keysidecar/server/identity"
	"github.com/keysidecar/keysidecar/tenant"
)

// auditor turns what happens into records. The zero auditor records nothing.
type auditor struct {
	log     *audit.Log // nil: none
	full    bool       // for tenants that do not say
	context []string   // keys of the encryption context whose values are recorded
	trial   atomic.Int64
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
	start := &record.Event{Version: s.version, Files: hashes(s.cfg, s.certs)}
	sink, others, err := s.auditSink(opts.AuditTo, origin, start)
	if err != nil {
		return err
	}
	s.audit.full, s.audit.context = c.Mode() == tenant.AuditFull, c.Context
	cfg := audit.Config{
		Log: origin, Sink: sink, Logger: s.log, Interval: c.Interval, CheckpointInterval: c.CheckpointInterval,
		WriteTimeout: c.WriteTimeout, Rows: c.Rows, DenialsPerMinute: c.DenialsPerMinute,
	}
	if s.auditDir != nil {
		cfg.Room = s.auditDir.Room
	}
	if s.auditDir != nil && c.SyncInterval > 0 {
		cfg.WriteSoon, cfg.Sync, cfg.SyncInterval = s.auditDir.WriteSoon, s.auditDir.Sync, c.SyncInterval
	}
	s.audit.log, err = audit.New(cfg, start, others...)
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
			s.log.LogAttrs(context.Background(), slog.LevelWarn, "the audit log goes nowhere: there is no standard output")
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
	before, ok := dir.Previous()
	if !ok {
		return dir, nil, nil
	}
	start.Log, start.Size, start.Root = before.Log, before.Size, base64.StdEncoding.EncodeToString(before.Root[:])
	start.From = before.Last
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

// hashes returns the hashes of what was read: of the files of the configuration,
// and of the certificates if there are any.
func hashes(cfg *config.Config, certs *identity.Certificates) map[string]string {
	files := make(map[string]string)
	maps.Copy(files, cfg.Hashes())
	if certs != nil {
		maps.Copy(files, certs.Hashes())
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

// operation is sealer.Config.Record. What could not be recorded is counted: the
// caller is told so, whatever it would have been told.
func (a *auditor) operation(ctx context.Context, e sealer.Event) error {
	if a.log == nil {
		return nil
	}
	row := audit.Row{Class: record.Data, Caller: e.CallerName, Verb: e.Verb.String(), Result: resultOf(&e)}
	if e.Allowed { // else the caller could fill the rows with tenants that it made up
		row.Tenant = e.Tenant
	}
	var err error
	switch {
	case e.Reason.Denial():
		err = a.log.Denied(ctx, a.call(ctx, record.Denied, &e))
	case e.Audit == tenant.AuditFull, e.Audit == tenant.AuditDefault && a.full:
		err = a.log.Append(ctx, record.Data, a.call(ctx, record.Call, &e))
	default:
		a.log.Count(row, int64(e.Bytes))
	}
	if errors.Is(err, audit.ErrUnavailable) {
		row.Result = sealer.AuditUnavailable.String()
		a.log.Count(row, int64(e.Bytes))
	}
	return err
}

// ready is sealer.Config.Ready. While nothing can be written, one operation a
// second may try.
func (a *auditor) ready() error {
	if a.log == nil {
		return nil
	}
	since := a.log.Stats().Failing
	if since.IsZero() {
		return nil
	}
	now, last := time.Now().UnixNano(), a.trial.Load()
	if now-last >= int64(time.Second) && a.trial.CompareAndSwap(last, now) {
		return nil
	}
	return fmt.Errorf("%w since %v", audit.ErrUnavailable, since.UTC().Format(time.RFC3339))
}

func (a *auditor) call(ctx context.Context, kind record.Kind, e *sealer.Event) *record.Event {
	out := from(&record.Event{
		Kind: kind, Tenant: e.Tenant, Verb: e.Verb.String(), Result: resultOf(e), Request: server.CallOf(ctx).ID(),
		Bytes: int64(e.Bytes), Context: e.Listed(a.context),
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
	err := a.log.Denied(ctx, from(&record.Event{
		Kind: record.Denied, Verb: verb, Result: r.String(), Request: c.ID(),
	}, c.CallerName, c.Caller))
	if err != nil {
		a.log.Count(audit.Row{Class: record.Data, Caller: c.CallerName, Verb: verb, Result: sealer.AuditUnavailable.String()}, 0)
	}
	return err
}

// key is dek.Config.Record. What is fenced is fenced whether or not it can be
// recorded.
func (a *auditor) key(ctx context.Context, e dek.Event) error {
	if a.log == nil {
		return nil
	}
	out := used(&record.Event{Kind: record.KeyStep, Step: e.Kind.String(), Tenant: e.Tenant.String()}, e.Info)
	if e.Kind == dek.Renewed {
		a.log.Note(record.Keys, out)
		return nil
	}
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

// willReload records that files are about to take effect, by their hashes.
func (a *auditor) willReload(ctx context.Context, files map[string]string) error {
	if a.log == nil {
		return nil
	}
	// Who stops waiting leaves a record that is written, and a reload that is not.
	ctx = context.WithoutCancel(ctx)
	return a.log.Append(ctx, record.Keys, &record.Event{Kind: record.Reload, Result: sealer.OK.String(), Files: files})
}

// notReloaded records that files were refused, with the hashes of what was read.
func (a *auditor) notReloaded(files map[string]string, err error) {
	if a.log != nil {
		a.log.Note(record.Keys, &record.Event{
			Kind: record.Reload, Result: "REFUSED", Files: files, Detail: fmt.Sprintf("%.1000s", err.Error()),
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
	pruneFirst    = 10 * time.Minute // after the start: clocks are set by then
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
	prune := time.NewTimer(pruneFirst)
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
			prune.Reset(pruneInterval)
		}
	}
}

func (s *Sidecar) pruneAudit(ctx context.Context) {
	if s.auditDir == nil {
		return
	}
	removed, err := s.auditDir.Prune(ctx, time.Now())
	if err != nil && ctx.Err() == nil {
		s.log.LogAttrs(ctx, slog.LevelError, "audit records not removed whose time is over: see audit.dir", slog.Any("cause", err))
	}
	if removed.Events > 0 || removed.Files > 0 {
		s.log.LogAttrs(ctx, slog.LevelInfo, "audit records removed whose time is over",
			slog.Int64("events", removed.Events), slog.Int("files", removed.Files))
		s.audit.log.Note(record.Keys, &record.Event{
			Kind: record.Removed, Count: removed.Events, From: removed.Oldest, To: removed.Newest,
			Detail: fmt.Sprintf("%d whole files", removed.Files),
		})
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
