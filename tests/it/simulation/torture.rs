//! Two thousand lists in every run of the tests; as many as one likes with `make torture`.

use super::{ops::About, runner::simulate};

#[test]
fn whatever_happens_in_whatever_order_every_promise_holds() {
    simulate(500, "SIMULATION", About::Everything);
}

#[test]
fn a_crash_at_any_write_loses_nothing_and_counts_nothing_twice() {
    simulate(500, "CRASHES", About::Crashes);
}

#[test]
fn limits_hold_on_the_edges_of_every_window_and_through_every_change() {
    simulate(500, "WINDOWS", About::Windows);
}

#[test]
fn requests_that_begin_and_end_together_use_every_limit_up_and_never_pass_it() {
    simulate(500, "CONCURRENCY", About::Concurrency);
}
