// Package archtest holds the repository to its own rules: the import table of
// docs/design.md section 3, the budgets for functions, files, packages and
// interfaces, where key bytes may be read, and documents that do not rot.
//
// It is all tests. Each check is a function from a tree of files to what is
// wrong with it, and is shown to find something in a small tree that is wrong.
package archtest
