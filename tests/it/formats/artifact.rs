use serde_json::json;

use crate::cli::Shell;

fn synced(file: &str) -> serde_json::Value {
    let shell = Shell::new();
    std::fs::write(shell.path().join("artifact.json"), file).unwrap();
    shell.json("usage sync-entitlements --path artifact.json --create-plans --output json");
    shell.json("plan show starter")
}

#[test]
fn the_artifact_of_schema_version_1_is_read() {
    let plan = synced(include_str!("entitlements-v1.json"));
    let features = plan["features"].as_array().unwrap();
    let pairs: Vec<_> = features
        .iter()
        .map(|feature| {
            (
                &feature["feature_key"],
                &feature["soft_limit"],
                &feature["hard_limit"],
            )
        })
        .collect();
    assert_eq!(
        json!(pairs),
        json!([
            ["messages", 150, 200],
            ["output_tokens", 75_000, 100_000],
            ["vector.max_file_bytes", null, 536_870_912]
        ])
    );
    assert_eq!(features[1]["limits"][1]["scope"], "user");
    assert_eq!(features[1]["alert_thresholds"], json!([50, 100]));
    assert_eq!(features[1]["stripe_meter"], "output_tokens");
    assert_eq!(features[2]["is_metered"], false);
}

#[test]
fn an_artifact_without_version_time_and_units_is_read() {
    let plan = synced(include_str!("entitlements-v0.json"));
    assert_eq!(plan["features"][0]["unit"], "requests");
    assert_eq!(plan["features"][0]["hard_limit"], 200);
    assert_eq!(plan["features"][1]["unit"], "units");
    assert_eq!(plan["features"][1]["is_metered"], false);
}
