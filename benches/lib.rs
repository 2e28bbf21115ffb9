//! Benchmarks of sam-lst. This package has no code of its own: its benches are `models`, `metrics`,
//! `datasets`, `cache` and `zero_shot`.
