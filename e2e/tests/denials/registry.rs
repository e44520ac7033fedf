//! The part of the registry: with each kind of token, each act on a subject that is in use, on a new one, and on the
//! settings.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use chassis::event::Event;
use events::orders::OrderCreated;
use launcher::directories::programs_directory;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use super::{Cells, Matrix, compare};
use crate::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_token_can_do_in_the_registry_what_is_declared_and_nothing_else() -> Result<()> {
    let _permit = stack_permit().await?;
    let (stack, stranger) = (secured_stack()?, secured_stack()?);
    stack.up_infrastructure().await?;
    stack.apply_contracts(&programs_directory()?).await?;
    let http = checker::http::client_builder(stack.ca_certificate()?.as_deref())?.build()?;
    let identities = [
        ("contracts", stack.registry_token()?),
        ("stranger", stranger.registry_token()?),
        ("anybody", None),
    ];
    let (mut observed, mut expected) = (Matrix::new(), Matrix::new());
    // The bearer who may write comes last, because what it deletes is gone.
    for (identity, token) in identities.into_iter().rev() {
        let attempt = Attempt { http: &http, url: stack.registry_url()?, token };
        let known = format!("subject {}-value", OrderCreated::topic().name);
        let new = format!("subject {identity}-value");
        // The token of another stack is refused where no token is needed, too.
        let declared = match identity {
            "contracts" => ["wsx", "rwsx", "r"],
            "anybody" => ["", "r", "r"],
            _ => ["", "", ""],
        };
        let attempts = [
            (new.clone(), attempt.on_subject(&new).await?),
            (known.clone(), attempt.on_subject(&known).await?),
            ("settings all".to_string(), attempt.on_settings().await?),
        ];
        for ((resource, letters), declared) in attempts.into_iter().zip(declared) {
            let cells = Cells { identity: identity.to_string(), resource };
            observed.insert(cells.clone(), letters);
            expected.insert(cells, declared.chars().collect());
        }
    }
    compare(&observed, &expected, "registry.txt")
}

struct Attempt<'a> {
    http: &'a Client,
    url: String,
    token: Option<String>,
}

impl Attempt<'_> {
    async fn on_subject(&self, subject: &str) -> Result<BTreeSet<char>> {
        let subject = subject.split_whitespace().last().context("the name of a subject")?;
        let (of, versions) = (format!("config/{subject}"), format!("subjects/{subject}/versions"));
        let schema = json!({ "schema": OrderCreated::topic().schema });
        let level = json!({ "compatibility": "NONE" });
        self.letters([
            ('r', Method::GET, &format!("{versions}/latest"), Value::Null),
            ('w', Method::POST, &versions, schema),
            ('s', Method::PUT, &of, level),
            ('x', Method::DELETE, &format!("subjects/{subject}"), Value::Null),
        ])
        .await
    }

    async fn on_settings(&self) -> Result<BTreeSet<char>> {
        let level = json!({ "compatibility": "NONE" });
        self.letters([
            ('r', Method::GET, "config", Value::Null),
            ('s', Method::PUT, "config", level),
        ])
        .await
    }

    /// The letters of the acts that the registry allows.
    async fn letters<const N: usize>(
        &self,
        acts: [(char, Method, &str, Value); N],
    ) -> Result<BTreeSet<char>> {
        let mut letters = BTreeSet::new();
        for (letter, method, path, body) in acts {
            let mut request = self.http.request(method, format!("{}/{path}", self.url));
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            if !body.is_null() {
                request = request.json(&body);
            }
            let response = request.send().await?;
            match response.status() {
                status if status.is_success() => drop(letters.insert(letter)),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {}
                status => bail!("{path}: {status}: {}", response.text().await?),
            }
        }
        Ok(letters)
    }
}
