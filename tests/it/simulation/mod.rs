//! Any list of operations on the real program, judged by a model of about two hundred lines: no hard limit is passed
//! or left unused, no event is lost or counted twice, events, rollups, totals and what is shown agree, and nothing
//! stays reserved. Requests, streams and hang-ups, a model that fails, says nothing of its usage or ignores its
//! maximum, reservations of applications that are settled, given back or expire, limits and subscriptions that change,
//! corrections, resets and rotated keys, clocks that stand on the edges
//! of windows, a store that goes away, and crashes at any write of the journal.
//!
//! A failure prints its seed and the shortest list that still fails; it is kept as a named test.

mod faults;
mod judge;
mod kept;
mod model;
mod ops;
mod play;
mod provider;
mod runner;
mod torture;
mod world;
