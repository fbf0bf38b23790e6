//! An answer, read whole.

use serde_json::Value;

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn read(response: reqwest::Response) -> Self {
        Self::try_read(response)
            .await
            .expect("the answer can be read to its end")
    }

    pub(crate) async fn try_read(response: reqwest::Response) -> reqwest::Result<Self> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Self {
            status,
            headers,
            text: response.text().await?,
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("ASCII"))
    }

    #[track_caller]
    pub(crate) fn expect_ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.text);
        self
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16, code: &str) -> Self {
        assert_eq!(
            (self.status, self.code().as_str()),
            (status, code),
            "{}",
            self.text
        );
        self
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// The error's code; empty where it is no error.
    pub(crate) fn code_if_any(&self) -> String {
        match self.status {
            ..400 => String::new(),
            _ => self.code(),
        }
    }

    /// The data of each event of a stream.
    pub(crate) fn events(&self) -> Vec<String> {
        self.text
            .split("\n\n")
            .filter_map(|event| {
                event
                    .strip_prefix("data: ")
                    .or(event.split_once("\ndata: ").map(|(_, data)| data))
            })
            .map(str::to_owned)
            .collect()
    }
}
