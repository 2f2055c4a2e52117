package state

import (
	"errors"
	"fmt"
	"net/http"
)

// ErrInUse means that another process, or another Dir in this one, has the
// directory open.
var ErrInUse = errors.New("directory is in use by another devvault")

// Error is a refusal by the vault, as its REST API answers it.
type Error struct {
	// Status is the HTTP status.
	Status int
	// Code is error.code of the answer, such as KeyNotFound.
	Code string
	// InnerCode is error.innererror.code, such as KeyDisabled, or empty.
	InnerCode string
	// Message is for people.
	Message string
}

// Error describes the refusal in one line.
func (e *Error) Error() string {
	if e.InnerCode == "" {
		return fmt.Sprintf("vault refused: %d %s: %s", e.Status, e.Code, e.Message)
	}
	return fmt.Sprintf("vault refused: %d %s (%s): %s", e.Status, e.Code, e.InnerCode, e.Message)
}

// AsError returns err as the vault answers it; anything but an *Error is an
// internal one whose text stays inside.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{
		Status: http.StatusInternalServerError, Code: "InternalServerError",
		Message: "An internal error occurred.",
	}
}

// BadParameter is a 400.
func BadParameter(format string, args ...any) error {
	return &Error{Status: http.StatusBadRequest, Code: "BadParameter", Message: fmt.Sprintf(format, args...)}
}

// Forbidden is a 403.
func Forbidden(inner, format string, args ...any) error {
	return &Error{
		Status: http.StatusForbidden, Code: "Forbidden", InnerCode: inner,
		Message: fmt.Sprintf(format, args...),
	}
}

// keyNotFound is also the answer for a key that is softly deleted.
func keyNotFound(name string) error {
	return &Error{
		Status: http.StatusNotFound, Code: "KeyNotFound",
		Message: "A key with (name/id) " + name + " was not found in this key vault. If you recently " +
			"deleted this key you may be able to recover it using the correct recovery command.",
	}
}

func deletedKeyNotFound(name string) error {
	return &Error{
		Status: http.StatusNotFound, Code: "KeyNotFound",
		Message: "Deleted Key not found: " + name,
	}
}

func deletedButRecoverable(name string) error {
	return &Error{
		Status: http.StatusConflict, Code: "Conflict", InnerCode: "ObjectIsDeletedButRecoverable",
		Message: "Key " + name + " is currently in a deleted but recoverable state, and its name cannot be " +
			"reused; in this state, the key can only be recovered or purged.",
	}
}

// VaultNotFound stands for what DNS would say: the name does not exist.
func VaultNotFound(host string) error {
	return &Error{
		Status: http.StatusMisdirectedRequest, Code: "VaultNotFound",
		Message: fmt.Sprintf("No vault has the host name %q.", host),
	}
}

// InvalidName is a 400 for a key's name or version that can not be one.
func InvalidName(name string) error {
	return BadParameter("The request URI contains an invalid name: %s", name)
}
