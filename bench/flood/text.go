package flood

import (
	"cmp"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/keysidecar/keysidecar/bench/pairs"
)

// Verdict says whether the bar is met. It is not when a call of the victim failed, however
// quick the others were.
func (res *Result) Verdict() pairs.Verdict {
	for _, h := range []*Half{&res.Calm, &res.Flood} {
		if h.Victim.OK != h.Victim.Due {
			return pairs.NotMet
		}
	}
	return res.Against(Bar)
}

// String says in some lines what happened.
func (res *Result) String() string {
	var b strings.Builder
	who := "TCP, callers by certificate"
	if res.Sockets {
		who = "Unix socket, callers by user ID"
	}
	fmt.Fprintf(&b, "%s: %s; %d pairs, each half %s\n", Claim, who, len(res.Ratios), short(res.Each))
	fmt.Fprintf(&b, "  capacity %.0f Seals of 1 KiB a second (%d callers, closed loop), limit %.1f\n",
		res.Capacity, capacityCallers, res.Capacity*limitPart)
	const format = "  %-38s %-20s %s\n"
	fmt.Fprintf(&b, format, "", "attacker keeps limit", "attacker floods")
	for _, line := range []struct {
		name string
		text func(*Half) string
	}{
		{"victim: calls a second; failed", func(h *Half) string {
			return fmt.Sprintf("%.0f; %d %s", rate(h.Victim.OK, h.Length), h.Victim.Due-h.Victim.OK, h.Victim.Failure)
		}},
		{"victim: p50; p99", func(h *Half) string { return fmt.Sprint(short(h.Victim.P50), "; ", short(h.Victim.P99)) }},
		{"victim: p99 of own delay before a call", func(h *Half) string { return fmt.Sprint(short(h.Victim.Late)) }},
		{"attacker: to be offered a second", func(h *Half) string { return fmt.Sprintf("%.0f", rate(h.Attacker.Due, h.Offering)) }},
		{fmt.Sprintf("  not offered: %d waited for answers", outstanding), func(h *Half) string {
			return fmt.Sprintf("%.0f", rate(h.Attacker.LeftOut, h.Offering))
		}},
		{"  admitted; refused; failed", func(h *Half) string {
			return fmt.Sprintf("%.0f; %.0f; %d %s", rate(h.Attacker.OK, h.Attacker.Took), rate(h.Attacker.Refused, h.Attacker.Took),
				h.Attacker.Failed, h.Attacker.Failure)
		}},
		{fmt.Sprintf("CPUs of %d: sidecar; victim; attacker", runtime.NumCPU()), func(h *Half) string {
			return fmt.Sprintf("%.2f; %.2f; %.2f",
				part(h.SidecarCPU, h.Measured), part(h.VictimCPU, h.Measured), part(h.AttackerCPU, h.Measured))
		}},
	} {
		fmt.Fprintf(&b, format, line.name, line.text(&res.Calm), line.text(&res.Flood))
	}
	served, refused := res.perCall()
	fmt.Fprintf(&b, "  sidecar's CPU time of a call: %s at capacity, %s beside the calm attacker, %s refused\n",
		short(res.PerCall), short(served), short(refused))
	fmt.Fprintf(&b, "  ratios of the pairs: %.2f", res.Ratios)
	return b.String()
}

// perCall returns the sidecar's CPU time of a call that is served in calm, with the sidecar's
// part in being idle, and of one that is refused: what the flood takes beyond that.
func (res *Result) perCall() (served, refused time.Duration) {
	calm, flood := &res.Calm, &res.Flood
	if n := calm.Victim.OK + calm.Attacker.OK; n > 0 {
		served = calm.AllCPU / time.Duration(n)
	}
	more := flood.AllCPU - served*time.Duration(flood.Victim.OK+flood.Attacker.OK)
	return served, max(0, more/time.Duration(cmp.Or(flood.Attacker.Refused, 1)))
}

func rate(n int, in time.Duration) float64 { return float64(n) / max(in.Seconds(), 1e-9) }

func part(used, of time.Duration) float64 { return used.Seconds() / max(of.Seconds(), 1e-9) }

// short rounds d to what can be read.
func short(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(10 * time.Microsecond)
}
