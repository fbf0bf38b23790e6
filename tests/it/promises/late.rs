//! What settles after its window has ended: one server knows of its own at once, replicas of each other's once it is in
//! the store.

use serde_json::json;
use tollgate::domain::window::WindowKind;

use super::time_is_right::{Inside, at};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_settles_after_its_window_burns_the_grant_at_once() {
    let inside = Inside::start("2027-01-31T23:59:00Z", &[(WindowKind::Month, 2)]).await;
    inside.grant(5).await;
    inside.clock.set(at("2027-01-31T23:59:59Z"));
    let ask = json!({"quantities": {"messages": 6}, "ttl_seconds": 600});
    let (status, held) = inside.post("/api/v1/usage/reservations", ask).await;
    assert_eq!(status, 201, "{held}");

    inside.clock.set(at("2027-02-01T00:00:00Z"));
    assert_eq!(
        inside.answered(1).await,
        1,
        "the limit counts the grant whole, as nothing has burned it yet"
    );
    let id = held["reservation_id"].as_str().unwrap();
    let path = format!("/api/v1/usage/reservations/{id}/settle");
    let used = json!({"quantities": {"messages": 6}, "idempotency_key": "once"});
    let (status, settled) = inside.post(&path, used).await;
    assert_eq!(status, 200, "{settled}");
    if inside.is_of_several() {
        inside.drain().await;
    }
    assert_eq!(
        inside.answered(10).await,
        2,
        "two of the plan and the one that is left of the grant, but for the one answered before"
    );
    inside.close().await;
}
