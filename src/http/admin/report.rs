//! `/report.json` and `/report.csv`: the report on all tenants, streamed as the file it is.

use std::path::PathBuf;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use bytes::BytesMut;
use futures_util::stream;
use http::{
    HeaderValue,
    header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE},
};
use tokio::{fs::File, io::AsyncReadExt as _};

use super::access::Viewer;
use crate::{
    app::App,
    http::{
        error::{ApiError, ApiResult},
        fields::{FieldType, parsed_from_text},
        openapi::errors,
        query::Query,
    },
    services::{
        report::{ReportAsk, ReportFailed, ReportFiles, Who},
        usage_view::WarnAt,
    },
};

/// How much of the file is read at a time.
const CHUNK_BYTES: usize = 64 * 1024;

parsed_from_text! {
    WarnAt => "a share from 0 to 1 with up to six decimals, such as 0.8",
}

/// What a report is of; as the flags of `tollgate usage export-report`.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query, which is read one by one")]
pub(super) struct ReportParams {
    /// The report as it stood at the end of this second; now unless named.
    as_of: Option<crate::domain::time::Timestamp>,
    /// The start of each subscription's current period unless named.
    period_start: Option<crate::domain::time::Timestamp>,
    /// The end of each subscription's current period unless named.
    period_end: Option<crate::domain::time::Timestamp>,
    /// Only these tenants; several with commas.
    tenant: Option<String>,
    /// Only tenants of these plans, in any case; several with commas.
    plan: Option<String>,
    /// Only these features; several with commas.
    feature: Option<String>,
    /// Tenants whose subscription does not run, or who have none, too.
    include_inactive: Option<bool>,
    /// From which share of its soft, else hard limit on a feature is approaching; 0.8 unless named.
    #[param(value_type = Option<String>, example = "0.8")]
    warn_threshold: Option<WarnAt>,
}

#[derive(Clone, Copy)]
enum Format {
    Json,
    Csv,
}

/// Report what every tenant used, with its limits, as JSON.
#[utoipa::path(
    get, path = "/report.json", tag = "reports", security(("administrator" = ["viewer"])),
    params(ReportParams),
    responses((status = 200, description = "The report (docs/guide/setup.md)", body = Object), errors::NotFound),
)]
pub(super) async fn json(State(app): State<App>, _: Viewer, query: Query) -> ApiResult<Response> {
    report(&app, query, Format::Json).await
}

/// Report what every tenant used, with its limits, as CSV: a row for each tenant and feature.
#[utoipa::path(
    get, path = "/report.csv", tag = "reports", security(("administrator" = ["viewer"])),
    params(ReportParams),
    responses((status = 200, description = "RFC 4180, with a heading", body = String, content_type = "text/csv"), errors::NotFound),
)]
pub(super) async fn csv(State(app): State<App>, _: Viewer, query: Query) -> ApiResult<Response> {
    report(&app, query, Format::Csv).await
}

async fn report(app: &App, mut query: Query, format: Format) -> ApiResult<Response> {
    let ask = ReportAsk {
        as_of: query.optional("as_of")?,
        period_start: query.optional("period_start")?,
        period_end: query.optional("period_end")?,
        tenants: query.several("tenant")?,
        plans: query.several("plan")?,
        features: query.several("feature")?,
        who: if query.optional("include_inactive")?.unwrap_or(false) {
            Who::Everybody
        } else {
            Who::Active
        },
        warn_at: query
            .optional("warn_threshold")?
            .unwrap_or_else(|| WarnAt::percent(80)),
    };
    query.finish()?;
    // Written whole before the first byte leaves, so that a failure is an error and never a report cut short. The
    // file is gone with its directory at once, and with its last reader in fact.
    let directory =
        tempfile::tempdir_in(&app.config.data_dir).map_err(|error| unwritten(&error))?;
    let (name, kind) = match format {
        Format::Json => ("usage-dashboard.json", "application/json"),
        Format::Csv => ("usage-dashboard.csv", "text/csv; charset=utf-8"),
    };
    let path = directory.path().join(name);
    app.reports
        .export(&ask, files(format, path.clone()), &|_, _| ())
        .await?;
    let file = File::open(&path).await.map_err(|error| unwritten(&error))?;
    let length = file
        .metadata()
        .await
        .map_err(|error| unwritten(&error))?
        .len();
    let disposition = format!("attachment; filename=\"{name}\"");
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CONTENT_LENGTH, HeaderValue::from(length)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (
            CONTENT_DISPOSITION,
            HeaderValue::try_from(disposition).expect("a name of ours has no control characters"),
        ),
    ];
    Ok((headers, body_of(file)).into_response())
}

fn files(format: Format, path: PathBuf) -> ReportFiles {
    match format {
        Format::Json => ReportFiles {
            json: Some(path),
            csv: None,
        },
        Format::Csv => ReportFiles {
            json: None,
            csv: Some(path),
        },
    }
}

/// The file piece by piece, as fast as the client takes it.
fn body_of(file: File) -> Body {
    Body::from_stream(stream::try_unfold(file, |mut file| async move {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = file.read_buf(&mut chunk).await?;
        Ok::<_, std::io::Error>((read > 0).then(|| (chunk.freeze(), file)))
    }))
}

fn unwritten(error: &std::io::Error) -> ApiError {
    ApiError::StoreUnavailable {
        detail: format!("the report can't be written in the data dir: {error}"),
    }
}

impl From<ReportFailed> for ApiError {
    fn from(error: ReportFailed) -> Self {
        match error {
            ReportFailed::Admin(error) => error.into(),
            ReportFailed::File { cause, .. } => unwritten(&cause),
        }
    }
}
