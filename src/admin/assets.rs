//! Style sheet, scripts and pictures, embedded; each at an address that changes with its content, so that browsers
//! may keep it for good.

use std::{collections::BTreeMap, sync::LazyLock};

use axum::response::{IntoResponse, Response};
use http::{
    HeaderValue,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use include_dir::{Dir, include_dir};
use sha2::{Digest as _, Sha256};

use crate::http::{
    error::{self, ApiResult},
    path::InPath,
};

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/assets/admin/static");

/// What a file is served as.
struct Asset {
    path: String,
    content_type: &'static str,
    content: &'static [u8],
}

/// By the file's name.
static ASSETS: LazyLock<BTreeMap<&'static str, Asset>> = LazyLock::new(|| {
    let files = FILES.files().filter_map(|file| {
        let name = file.path().to_str()?;
        let (stem, extension) = name.rsplit_once('.')?;
        let content_type = match extension {
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => return None,
        };
        let hash = Sha256::digest(file.contents());
        let hash: String = hash
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let asset = Asset {
            path: format!("/admin/static/{stem}.{hash}.{extension}"),
            content_type,
            content: file.contents(),
        };
        Some((name, asset))
    });
    files.collect()
});

/// The address of the file `name`.
///
/// # Panics
/// If there is none: names are written in templates, which a test renders.
#[must_use]
pub(super) fn path(name: &str) -> &'static str {
    &ASSETS.get(name).expect("the file is embedded").path
}

/// `GET /admin/static/{file}`.
///
/// # Errors
/// `NotFound`, also for a name whose content has changed.
pub(super) async fn show(InPath(file): InPath<String>) -> ApiResult<Response> {
    let path = format!("/admin/static/{file}");
    let asset = ASSETS.values().find(|asset| asset.path == path);
    let asset = std::future::ready(asset)
        .await
        .ok_or_else(|| error::nothing_at(&path))?;
    let for_good = HeaderValue::from_static("public, max-age=31536000, immutable");
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(asset.content_type)),
        (CACHE_CONTROL, for_good),
    ];
    Ok((headers, asset.content).into_response())
}
