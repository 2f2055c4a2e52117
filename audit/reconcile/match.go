package reconcile

// unmatched stands for no record.
const unmatched = -1

// maxStates bounds the memory for finding out which of many uses have no
// record, in bytes.
const maxStates = 16 << 20

// match pairs records with uses, one to one, of which none is further apart than
// tolerance: as many as possible, and of all such ways the one whose pairs are
// closest together, so that a use at another time than every record is the one
// that has none. Both are sorted, in microseconds. It returns for each use the
// index of its record, or unmatched.
//
// Where more than maxStates ways would have to be weighed, it takes the first of
// them: the number of uses without a record is right, but a neighbour may be
// named in place of one of them.
func match(records, uses []int64, tolerance int64) []int {
	of := make([]int, len(uses))
	for r, u := 0, 0; r < len(records) || u < len(uses); {
		endR, endU := cluster(records, uses, r, u, tolerance)
		matchCluster(records[r:endR], uses[u:endU], tolerance, of[u:endU])
		for i := u; i < endU; i++ {
			if of[i] != unmatched {
				of[i] += r
			}
		}
		r, u = endR, endU
	}
	return of
}

// cluster returns up to where records and uses, from r and u on, follow each
// other within the tolerance. Nothing in it can be paired with what comes after.
func cluster(records, uses []int64, r, u int, tolerance int64) (endR, endU int) {
	for started, last := false, int64(0); r < len(records) || u < len(uses); started = true {
		isRecord := u == len(uses) || r < len(records) && records[r] <= uses[u]
		var at int64
		if isRecord {
			at = records[r]
		} else {
			at = uses[u]
		}
		if started && at-last > tolerance {
			break
		}
		if last = at; isRecord {
			r++
		} else {
			u++
		}
	}
	return r, u
}

// matchCluster is match, for what follows each other within the tolerance.
func matchCluster(records, uses []int64, tolerance int64, of []int) {
	n := greedy(records, uses, tolerance, of)
	states := uint64(n+1) * uint64(len(records)-n+1) * uint64(len(uses)-n+1)
	if n > 0 && (n < len(records) || n < len(uses)) && states <= maxStates {
		closest(records, uses, tolerance, n, of)
	}
}

// greedy pairs the earliest record with the earliest use whenever they may be,
// else leaves out the earlier of the two. No other way has more pairs:
//
// If they may not be, then the earlier one may be paired with nothing, because
// all others are later still. If they may, then some largest set of pairs has
// this one. Else take one of the largest. It has one of the two, or this pair
// could be added. If it has just one, exchange that one's partner for the other. If
// it has both, r0 with u and r with u0, pair r0 with u0 and r with u instead: r and
// u are no further apart, for r-u <= r-u0, and u-r <= u-r0, as r0 <= r and
// u0 <= u.
func greedy(records, uses []int64, tolerance int64, of []int) (pairs int) {
	for i := range of {
		of[i] = unmatched
	}
	for r, u := 0, 0; r < len(records) && u < len(uses); {
		switch d := records[r] - uses[u]; {
		case d < -tolerance:
			r++
		case d > tolerance:
			u++
		default:
			of[u] = r
			r, u, pairs = r+1, u+1, pairs+1
		}
	}
	return pairs
}

// The ways into a state of closest.
const (
	impossible = iota
	byPair
	byRecord // left out
	byUse    // left out
)

// closest finds, among the ways to make n pairs, the one with the smallest sum
// of distances. Pairs that cross can be uncrossed without making it larger, so
// only ways in order are weighed: in state (n pairs made, a records left out, b
// uses left out) the next record is n+a, the next use n+b.
func closest(records, uses []int64, tolerance int64, n int, of []int) {
	width, depth := len(uses)-n+1, len(records)-n+1
	layer := width * depth
	way := make([]uint8, (n+1)*layer)
	cost, before := make([]int64, layer), make([]int64, layer)
	for pairs := range n + 1 {
		cost, before = before, cost
		for s := range layer {
			a, b := s/width, s%width
			best, by := int64(0), uint8(impossible)
			offer := func(c int64, w uint8) {
				if by == impossible || c < best {
					best, by = c, w
				}
			}
			here := way[pairs*layer : (pairs+1)*layer]
			if pairs == 0 && s == 0 {
				offer(0, byPair) // the beginning
			}
			if pairs > 0 && way[(pairs-1)*layer+s] != impossible {
				if d := distance(records[pairs-1+a], uses[pairs-1+b]); d <= tolerance {
					offer(before[s]+d, byPair)
				}
			}
			if a > 0 && here[s-width] != impossible {
				offer(cost[s-width], byRecord)
			}
			if b > 0 && here[s-1] != impossible {
				offer(cost[s-1], byUse)
			}
			cost[s], here[s] = best, by
		}
	}
	for pairs, a, b := n, depth-1, width-1; pairs+a+b > 0; {
		switch way[pairs*layer+a*width+b] {
		case byPair:
			pairs--
			of[pairs+b] = pairs + a
		case byRecord:
			a--
		case byUse:
			b--
			of[pairs+b] = unmatched
		default:
			panic("reconcile: internal error: no way to as many pairs as there are")
		}
	}
}

func distance(a, b int64) int64 { return max(a-b, b-a) }
