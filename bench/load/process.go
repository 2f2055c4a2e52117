package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// answer is a line that a process of calls writes.
type answer struct {
	Report
	Error string `json:",omitempty"`
}

// Serve is the main function of a process that makes calls. It reads a Target from in, dials
// it, reads Orders until in ends, and answers every line with a line.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	lines, answers := json.NewDecoder(in), json.NewEncoder(out)
	var t Target
	if err := lines.Decode(&t); err != nil {
		return fmt.Errorf("reading target: %w", err)
	}
	c, err := Dial(ctx, t)
	if err != nil {
		return errors.Join(err, answers.Encode(answer{Error: err.Error()}))
	}
	defer c.Close()
	if err := answers.Encode(answer{}); err != nil {
		return err
	}
	for {
		var o Order
		if err := lines.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading order: %w", err)
		}
		var a answer
		if a.Report, err = c.Do(ctx, o); err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// Remote is a Caller in another process, which Serve serves.
type Remote struct {
	lines   *json.Encoder
	answers *json.Decoder
}

// NewRemote tells the process behind in and out its Target, and waits until it has
// connected.
func NewRemote(t Target, in io.Writer, out io.Reader) (*Remote, error) {
	r := &Remote{json.NewEncoder(in), json.NewDecoder(out)}
	if err := r.lines.Encode(t); err != nil {
		return nil, fmt.Errorf("telling process its target: %w", err)
	}
	if _, err := r.wait(); err != nil {
		return nil, err
	}
	return r, nil
}

// Do has the process make calls. It is not safe for concurrent use.
func (r *Remote) Do(o Order) (Report, error) {
	if err := r.lines.Encode(o); err != nil {
		return Report{}, fmt.Errorf("giving process an order: %w", err)
	}
	return r.wait()
}

func (r *Remote) wait() (Report, error) {
	var a answer
	if err := r.answers.Decode(&a); err != nil {
		return Report{}, fmt.Errorf("reading answer of process: %w", err)
	}
	if a.Error != "" {
		return Report{}, errors.New(a.Error)
	}
	return a.Report, nil
}
