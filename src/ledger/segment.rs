//! The bytes of a segment (docs/format.md, "Ledger"): header, then sealed batches of records. Pure.
