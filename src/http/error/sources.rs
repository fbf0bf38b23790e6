//! What went wrong in a service, as the failure that a client sees.

use http::StatusCode;

use super::ApiError;
use crate::{
    journal::JournalError,
    json::Unreadable,
    ledger::LedgerError,
    provider::{ProviderError, request::BadRequest},
    services::{
        AdminError, chat::ChatError, guard::AdmitError, reports::ReportError,
        reservations::ReservationError,
    },
};

impl ApiError {
    /// The server is stopping, and the run was ended with it.
    #[must_use]
    pub fn stopped() -> Self {
        Self::Stopping
    }
}

impl From<Unreadable> for ApiError {
    fn from(error: Unreadable) -> Self {
        Self::Unreadable(error.to_string())
    }
}

impl From<BadRequest> for ApiError {
    fn from(error: BadRequest) -> Self {
        match error {
            BadRequest::Unreadable(error) => error.into(),
            BadRequest::Field {
                param,
                found,
                accepted,
            } => Self::bad_field(param, found, accepted),
            BadRequest::Unsupported { param, reason } => Self::UnsupportedParameter {
                param: param.to_owned(),
                reason: reason.to_owned(),
            },
        }
    }
}

impl From<AdmitError> for ApiError {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::NoPlan {
                tenant_id,
                plan_code,
            } => Self::NoPlan {
                tenant_id,
                plan_code,
            },
            AdmitError::SubscriptionInactive { plan_code, status } => {
                Self::SubscriptionInactive { plan_code, status }
            }
            AdmitError::ModelNotAllowed {
                plan_code,
                model,
                allowed,
            } => Self::ModelNotAllowed {
                plan_code,
                model,
                allowed,
            },
            AdmitError::OpenInput { what } => Self::OpenInputNotAllowed {
                what: what.to_owned(),
            },
            AdmitError::NotPriced { model } => Self::ModelNotPriced { model },
            AdmitError::Unavailable(detail) => Self::StoreUnavailable { detail },
            AdmitError::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        match error {
            ChatError::Admit(error) => error.into(),
            ChatError::ConversationNotFound(id) => Self::ConversationNotFound(id.to_string()),
            ChatError::Store(error) => error.into(),
            ChatError::Provider(error) => error.into(),
            ChatError::Journal(error) => error.into(),
            ChatError::Stopped => Self::stopped(),
        }
    }
}

impl From<ProviderError> for ApiError {
    fn from(error: ProviderError) -> Self {
        // The reason names hosts and addresses: it is the operator's to read, in the log.
        let detail = error.to_string();
        let upstream = |message: &str| Self::Upstream {
            message: message.to_owned(),
            detail: detail.clone(),
        };
        match error {
            ProviderError::NotConfigured(what) => Self::ProviderNotConfigured(what),
            ProviderError::Timeout => Self::UpstreamTimeout,
            ProviderError::Unreachable(_) => upstream("The upstream could not be reached."),
            ProviderError::Broken(_) => upstream("The upstream's answer broke off."),
            // Its own words may name the operator's key or account.
            ProviderError::Refused {
                status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN,
                ..
            } => Self::UpstreamRefused {
                message: "The upstream refused the operator's key.".to_owned(),
                detail,
            },
            ProviderError::Refused { status, .. } => {
                let message = format!("The upstream answered {status}.");
                let may_pass = matches!(
                    status,
                    StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                );
                if may_pass || !status.is_client_error() {
                    Self::Upstream { message, detail }
                } else {
                    Self::UpstreamRefused { message, detail }
                }
            }
        }
    }
}

impl From<JournalError> for ApiError {
    fn from(error: JournalError) -> Self {
        Self::StoreUnavailable {
            detail: error.to_string(),
        }
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        Self::StoreUnavailable {
            detail: error.to_string(),
        }
    }
}

impl From<AdminError> for ApiError {
    fn from(error: AdminError) -> Self {
        let message = error.to_string();
        match error {
            AdminError::Invalid {
                field,
                value,
                accepted,
            } => Self::bad_field(field, value, accepted),
            AdminError::NotFound { what, name } => Self::NotFound(format!("{what} '{name}'")),
            AdminError::AlreadyExists { what, name } => Self::AlreadyExists {
                what: what.to_owned(),
                name,
            },
            AdminError::PlanInUse {
                plan,
                subscriptions,
            } => Self::PlanInUse {
                plan_code: plan.to_string(),
                subscriptions,
            },
            AdminError::LastOwner { .. } => Self::Invalid {
                param: "admin_token_id".to_owned(),
                message,
            },
            AdminError::VersionConflict { .. } => Self::VersionConflict {
                message,
                current: serde_json::Value::Null,
            },
            AdminError::Unavailable(detail) => Self::StoreUnavailable { detail },
        }
    }
}

impl From<ReportError> for ApiError {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::NoTenant(tenant) => Self::NotFound(format!("tenant '{tenant}'")),
            ReportError::Store(error) => error.into(),
            ReportError::Ledger(error) => error.into(),
        }
    }
}

impl From<ReservationError> for ApiError {
    fn from(error: ReservationError) -> Self {
        match error {
            ReservationError::Admit(error) => error.into(),
            ReservationError::NotFound(id) => Self::NotFound(format!("reservation '{id}'")),
            ReservationError::Settled(id) => Self::ReservationSettled {
                reservation_id: id.to_string(),
            },
            ReservationError::Store(error) => error.into(),
            ReservationError::Journal(error) => error.into(),
            ReservationError::Stopped => Self::stopped(),
        }
    }
}
