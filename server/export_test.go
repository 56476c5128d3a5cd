package server

// Assemble is New with other lifetimes of certificates.
var Assemble = assemble
