//! Stripe is told of everything once, and what it tells holds, whatever fails and in whatever order it comes.

mod on_postgres;
mod push;
mod reconcile;
pub(crate) mod served;
mod simulation;
mod torture;
mod webhooks;
mod world;
