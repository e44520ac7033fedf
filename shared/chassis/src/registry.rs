//! The schema registry, as seen by relay and consumer: ids of schemas and schemas of ids.
//!
//! Both never change once known, so each is asked for once and kept. A registry that is away stops
//! nothing that was seen before.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt, join_all};
use schema_registry_converter::{
    async_impl::schema_registry::{
        SrSettings, get_referenced_schema, get_schema_by_id, perform_sr_call,
    },
    error::SRCError,
    schema_registry_common::{RawError, RegisteredReference, SchemaType, SrCall},
};

use crate::avro::{Codec, Undecodable};
use crate::config::{SchemaRegistry, Secret};
use crate::event::Topic;

/// One request, at most.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a caller waits for answers at most; the requests go on without it. A registry answers in
/// milliseconds, and one that hangs may not hold up the records whose schemas are known.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two requests for an id whose schema is not settled: at first and at most. In between it is a quarter
/// of the time since the first request.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How long requests may be under way. Far more than they take: only what broke off takes longer.
const UNDER_WAY_MAX: Duration = Duration::from_secs(60);

/// How long an id that can't be read is remembered before it is requested again.
const UNREADABLE_KEPT: Duration = Duration::from_secs(60);

/// How long the registry may fail for one id, while it serves another, before that id counts as unreadable.
const FAILING_MAX: Duration = Duration::from_secs(300);

/// Ids that are requested at the same time: a batch of junk must not become a thousand requests at once.
const REQUESTS_AT_ONCE: usize = 16;

/// Schemas that one schema may refer to, directly or not.
const REFERENCES_MAX: usize = 64;

/// With more ids than this, those without a schema are forgotten: junk must not fill the memory.
const REMEMBERED_MAX: usize = 10_000;

/// A client of the registry with what it has learned.
pub struct Registry {
    settings: SrSettings,
    /// How long after a record was written its schema id may be unknown: the registry may be behind.
    pub(crate) lag_max: Duration,
    /// By topic and fingerprint.
    ids: RwLock<HashMap<String, HashMap<Vec<u8>, u32>>>,
    schemas: RwLock<HashMap<u32, Lookup>>,
    /// Topics whose schemas a healthy registry has.
    declared: RwLock<Vec<&'static Topic>>,
}

/// What is known of a schema id.
#[derive(Clone)]
pub enum Known {
    /// The registry's schema.
    Schema(Arc<Codec>),
    /// It can't be read here, because: it is no Avro schema, or one without a bound; or the registry refuses
    /// this id while it serves others.
    Unreadable(String),
    /// A healthy registry does not have it. It may be behind: a young record waits.
    Unregistered(String),
    /// No answer settles it yet: wait and ask again.
    Unsettled(String),
}

/// An id that was requested.
struct Lookup {
    known: Known,
    first_at: Instant,
    last_at: Instant,
    is_requested: bool,
}

impl Lookup {
    fn is_under_way(&self) -> bool {
        self.is_requested && self.last_at.elapsed() < UNDER_WAY_MAX
    }

    fn is_due(&self) -> bool {
        let retry = match self.known {
            Known::Schema(_) => return false,
            Known::Unreadable(_) => UNREADABLE_KEPT,
            Known::Unregistered(_) | Known::Unsettled(_) => {
                ((self.last_at - self.first_at) / 4).clamp(RETRY_MIN, RETRY_MAX)
            }
        };
        !self.is_under_way() && self.last_at.elapsed() >= retry
    }
}

/// Schemas that a schema refers to.
#[derive(Default)]
struct References {
    /// By subject and version.
    seen: HashSet<(String, u32)>,
    texts: Vec<String>,
}

/// What the registry answers for one id.
enum Answer {
    Known(Known),
    /// It answers, and refuses: 4xx.
    Refused(String),
    /// It gives no answer, or none that can be understood.
    Failed(String),
}

/// The registry gave no answer that settles the question: wait and ask again.
#[derive(Debug, thiserror::Error)]
#[error("the schema registry: {0}")]
pub struct Unreachable(String);

/// Why a schema has no id.
#[derive(Debug, thiserror::Error)]
pub enum NoId {
    /// Nobody can tell.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// A healthy registry does not have it: its contract is still to be applied.
    #[error("the schema of {0} is not registered")]
    Unregistered(String),
    /// The registry answers, and won't say.
    #[error("the registry refuses to tell of {0}")]
    Refused(String),
}

impl Registry {
    /// A client; connects at first use.
    pub fn new(config: &SchemaRegistry) -> anyhow::Result<Registry> {
        let mut settings = SrSettings::new_builder(config.schema_registry_url.clone());
        if let Some(username) = &config.schema_registry_username {
            let password = config.schema_registry_password.as_ref().map(Secret::expose);
            settings.set_basic_authorization(username, password);
        }
        Ok(Registry {
            // A proxy of the environment leads to the public network, where no registry of ours is.
            settings: settings.no_proxy().set_timeout(REQUEST_TIMEOUT).build()?,
            lag_max: config.schema_registry_lag,
            ids: RwLock::default(),
            schemas: RwLock::default(),
            declared: RwLock::default(),
        })
    }

    /// Names a topic whose schema the registry has once contracts are applied.
    pub(crate) fn declare(&self, topic: &'static Topic) {
        self.declared.write().unwrap_or_else(PoisonError::into_inner).push(topic);
    }

    /// The same as [`Registry::id_of`], without asking.
    pub fn known_id_of(&self, topic: &str, fingerprint: &[u8]) -> Option<u32> {
        self.ids.read().expect("not poisoned").get(topic)?.get(fingerprint).copied()
    }

    /// The id under which a topic's subject holds exactly this schema. Services look up and never
    /// register: contracts are applied by one explicit command.
    ///
    /// # Errors
    /// [`NoId::Unregistered`] if a healthy registry does not have it, [`NoId::Refused`] if the
    /// registry answers and won't say, [`NoId::Unreachable`] if no answer within 3 s settles it.
    pub async fn id_of(&self, topic: &str, fingerprint: &[u8], schema: &str) -> Result<u32, NoId> {
        if let Some(id) = self.known_id_of(topic, fingerprint) {
            return Ok(id);
        }
        let subject = &format!("{topic}-value");
        let body = serde_json::json!({ "schema": schema, "schemaType": "AVRO" }).to_string();
        let found = perform_sr_call(&self.settings, SrCall::PostForVersion(subject, &body)).await;
        let found = found.map_err(|error| {
            let told = format!("{subject}: {}", brief(&error));
            match error_code(&error) {
                _ if unknown(&error) => NoId::Unregistered(subject.to_string()),
                Some(400..=499 | 40_000..=49_999) => NoId::Refused(told),
                _ => Unreachable(told).into(),
            }
        })?;
        let without = || Unreachable(format!("{subject}: an answer without an id"));
        let id = found.id.ok_or_else(without)?;
        let mut ids = self.ids.write().expect("not poisoned");
        ids.entry(topic.to_string()).or_default().insert(fingerprint.to_vec(), id);
        Ok(id)
    }

    /// What is known of these ids. Those that are due are requested together, for which this waits a second at
    /// most; every id is in the answer.
    pub async fn schemas_of(
        self: &Arc<Self>,
        ids: impl IntoIterator<Item = u32>,
    ) -> HashMap<u32, Known> {
        let ids: HashSet<u32> = ids.into_iter().collect();
        let (due, hangs) = self.due(&ids);
        if !due.is_empty() {
            let registry = self.clone();
            let requests = tokio::spawn(async move { registry.request(due).await });
            // Late or in time: what is known by then is the answer.
            let wait = if hangs { Duration::ZERO } else { ANSWER_TIMEOUT };
            let _ = tokio::time::timeout(wait, requests).await;
        }
        let schemas = self.schemas.read().unwrap_or_else(PoisonError::into_inner);
        let known = |id: &u32| schemas.get(id).map(|lookup| lookup.known.clone());
        let open = || Known::Unsettled("the schema registry has not answered yet".to_string());
        ids.into_iter().map(|id| (id, known(&id).unwrap_or_else(open))).collect()
    }

    /// The ids that are to be requested now, which the caller does, and whether the registry lets earlier
    /// requests hang.
    fn due(&self, ids: &HashSet<u32>) -> (Vec<u32>, bool) {
        {
            let schemas = self.schemas.read().unwrap_or_else(PoisonError::into_inner);
            if ids.iter().all(|id| schemas.get(id).is_some_and(|lookup| !lookup.is_due())) {
                return (Vec::new(), false);
            }
        }
        let mut schemas = self.schemas.write().unwrap_or_else(PoisonError::into_inner);
        if schemas.len() > REMEMBERED_MAX {
            schemas.retain(|_, it| it.is_under_way() || matches!(it.known, Known::Schema(_)));
        }
        let now = Instant::now();
        let late = |it: &Lookup| it.is_under_way() && it.last_at.elapsed() > ANSWER_TIMEOUT;
        let (mut due, hangs) = (Vec::new(), schemas.values().any(late));
        for id in ids {
            let lookup = schemas.entry(*id).or_insert_with(|| Lookup {
                known: Known::Unsettled(format!("schema {id}: no answer yet")),
                first_at: now,
                last_at: now.checked_sub(RETRY_MIN).unwrap_or(now),
                is_requested: false,
            });
            if lookup.is_due() {
                (lookup.is_requested, lookup.last_at) = (true, now);
                due.push(*id);
            }
        }
        (due, hangs)
    }

    /// Has everything requested again that has no schema: an operator may just have registered it.
    pub fn forget_unknown(&self) {
        let mut schemas = self.schemas.write().unwrap_or_else(PoisonError::into_inner);
        schemas.retain(|_, it| it.is_under_way() || matches!(it.known, Known::Schema(_)));
    }

    /// Requests ids, and notes each answer.
    ///
    /// A refusal is final for one id only while another is served: 401 and 403 for every id are a wrong
    /// password, which is waited for.
    async fn request(&self, ids: Vec<u32>) {
        let mut open = Vec::new();
        let mut serves = false;
        for some in ids.chunks(REQUESTS_AT_ONCE) {
            let answers = join_all(some.iter().map(|id| self.request_one(*id))).await;
            for (id, answer) in some.iter().zip(answers) {
                match answer {
                    Answer::Known(known) => {
                        serves |= matches!(known, Known::Schema(_));
                        self.note(*id, |_| known);
                    }
                    Answer::Refused(because) => open.push((*id, because, true)),
                    Answer::Failed(because) => open.push((*id, because, false)),
                }
            }
        }
        if open.is_empty() {
            return;
        }
        serves = serves || self.serves_another(&ids).await;
        for (id, because, is_refused) in open {
            self.note(id, |failing_for| {
                match serves && (is_refused || failing_for > FAILING_MAX) {
                    true => Known::Unreadable(because),
                    false => Known::Unsettled(because),
                }
            });
        }
    }

    fn note(&self, id: u32, known: impl FnOnce(Duration) -> Known) {
        let mut schemas = self.schemas.write().unwrap_or_else(PoisonError::into_inner);
        let Some(lookup) = schemas.get_mut(&id) else { return };
        lookup.is_requested = false;
        // An answer that comes late says nothing against a schema that is known.
        if !matches!(lookup.known, Known::Schema(_)) {
            lookup.known = known(lookup.first_at.elapsed());
        }
    }

    /// Whether the registry serves any id but these: one that it served before, or that of a declared topic.
    async fn serves_another(&self, ids: &[u32]) -> bool {
        let served_before = {
            let schemas = self.schemas.read().unwrap_or_else(PoisonError::into_inner);
            let mut served =
                schemas.iter().filter(|(_, lookup)| matches!(lookup.known, Known::Schema(_)));
            served.next().map(|(id, _)| *id)
        };
        if let Some(id) = served_before {
            return get_schema_by_id(id, &self.settings).await.is_ok();
        }
        let declared = self.declared.read().unwrap_or_else(PoisonError::into_inner).clone();
        for topic in declared {
            let fingerprint = &topic.codec().fingerprint;
            if let Ok(id) = self.id_of(topic.name, fingerprint, topic.schema).await
                && !ids.contains(&id)
            {
                return get_schema_by_id(id, &self.settings).await.is_ok();
            }
        }
        false
    }

    async fn request_one(&self, id: u32) -> Answer {
        let unreadable = |because: String| Answer::Known(Known::Unreadable(because));
        // Ids are positive 32-bit integers; a registry may answer 500 to a larger one, which would
        // read as a registry that is ill, and wait for ever.
        if i32::try_from(id).is_err() {
            return unreadable(format!("{id} is no schema id"));
        }
        let found = match get_schema_by_id(id, &self.settings).await {
            Ok(found) => found,
            Err(error) if unknown(&error) => {
                return Answer::Known(Known::Unregistered(format!("schema id {id} is unknown")));
            }
            Err(error) => return failed(format!("schema {id}"), &error),
        };
        if found.schema_type != SchemaType::Avro {
            return unreadable(format!("schema {id} is not Avro"));
        }
        let mut references = References::default();
        if let Err(answer) = self.add_references(id, &found.references, &mut references).await {
            return answer;
        }
        match Codec::with_references(&found.schema, &references.texts) {
            Ok(codec) => Answer::Known(Known::Schema(Arc::new(codec))),
            Err(Undecodable(because)) => unreadable(format!("schema {id}: {because}")),
        }
    }

    /// Adds the schemas that a schema refers to, directly or not, each after those that it refers to itself.
    fn add_references<'a>(
        &'a self,
        id: u32,
        referred: &'a [RegisteredReference],
        references: &'a mut References,
    ) -> BoxFuture<'a, Result<(), Answer>> {
        async move {
            for reference in referred {
                let RegisteredReference { subject, version, .. } = reference;
                if !references.seen.insert((subject.clone(), *version)) {
                    continue;
                }
                if references.seen.len() > REFERENCES_MAX {
                    let because =
                        format!("schema {id} refers to more than {REFERENCES_MAX} others");
                    return Err(Answer::Known(Known::Unreadable(because)));
                }
                let found = get_referenced_schema(&self.settings, reference).await;
                let found = found.map_err(|error| {
                    failed(format!("schema {id}, which refers to {subject} {version}"), &error)
                })?;
                self.add_references(id, &found.references, references).await?;
                references.texts.push(found.schema);
            }
            Ok(())
        }
        .boxed()
    }
}

/// What an error means for the id that was requested. Only the registry itself refuses; a bare 404 may come
/// from anything on the way to it.
fn failed(what: String, error: &SRCError) -> Answer {
    let because = format!("the schema registry: {what}: {}", brief(error));
    match status(error) {
        Some(404 | 408 | 429) if error_code(error) < Some(1_000) => Answer::Failed(because),
        Some(400..=499) => Answer::Refused(because),
        _ => Answer::Failed(because),
    }
}

/// The HTTP status of an answer, by its error code or by the text of the client's library.
fn status(error: &SRCError) -> Option<u32> {
    match error_code(error) {
        Some(code @ 400..=599) => Some(code),
        Some(code @ 40_000..=59_999) => Some(code / 100),
        _ => error.error.split("with status ").nth(1)?.get(..3)?.parse().ok(),
    }
}

/// A healthy registry says so with an error code of its own. A bare 404 may come from anybody on the
/// way to it, and is no answer.
fn unknown(error: &SRCError) -> bool {
    const SUBJECT_NOT_FOUND: u32 = 40401;
    const SCHEMA_NOT_FOUND: u32 = 40403;
    error_code(error).is_some_and(|code| [SUBJECT_NOT_FOUND, SCHEMA_NOT_FOUND].contains(&code))
}

/// What the registry itself says, if it was the registry: an HTTP status, or that with two digits more.
fn error_code(error: &SRCError) -> Option<u32> {
    let said = error.source().and_then(|source| source.downcast_ref::<RawError>());
    said.map(|said| said.error_code)
}

/// One line for a log.
fn brief(error: &SRCError) -> String {
    let cause = error.cause.as_deref().unwrap_or("no cause given");
    format!("{} ({cause})", error.error).chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::{Json, Router};
    use serde_json::json;

    use super::*;

    type Answers = fn(&str) -> (StatusCode, serde_json::Value);

    /// A client of a registry that answers each path with what the function says.
    async fn asking(
        answers: impl Fn(&str) -> (StatusCode, serde_json::Value) + Clone + Send + Sync + 'static,
    ) -> Arc<Registry> {
        let answer = move |request: axum::extract::Request| {
            let (status, body) = answers(request.uri().path());
            async move { (status, Json(body)) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let schema_registry_url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
        let (schema_registry_username, schema_registry_password) = (None, None);
        let registry = Registry::new(&SchemaRegistry {
            schema_registry_url,
            schema_registry_username,
            schema_registry_password,
            schema_registry_lag: Duration::from_secs(120),
        });
        Arc::new(registry.unwrap())
    }

    const NULL: &str = r#""null""#;

    fn schema(_: &str) -> (StatusCode, serde_json::Value) {
        (StatusCode::OK, json!({ "schema": NULL }))
    }

    fn refusal(status: StatusCode, error_code: u32) -> (StatusCode, serde_json::Value) {
        (status, json!({ "error_code": error_code, "message": "" }))
    }

    #[tokio::test]
    async fn only_the_registrys_own_word_makes_a_schema_unknown() {
        let registry = asking(|_| refusal(StatusCode::NOT_FOUND, 40403)).await;
        let known = registry.schemas_of([7, u32::MAX]).await;
        assert!(matches!(known[&7], Known::Unregistered(_)));
        assert!(matches!(known[&u32::MAX], Known::Unreadable(_)), "no registry gives this id");
        let answers: [Answers; 3] = [
            |_| (StatusCode::NOT_FOUND, json!("no such page")),
            |_| refusal(StatusCode::UNPROCESSABLE_ENTITY, 422),
            |_| refusal(StatusCode::INTERNAL_SERVER_ERROR, 50001),
        ];
        for answers in answers {
            let known = asking(answers).await.schemas_of([7]).await;
            assert!(matches!(known[&7], Known::Unsettled(_)));
        }
    }

    #[tokio::test]
    async fn an_id_that_is_refused_while_another_is_served_is_unreadable_and_a_wrong_password_is_waited_for()
     {
        let refusals: [Answers; 4] = [
            |_| refusal(StatusCode::FORBIDDEN, 40301),
            |_| refusal(StatusCode::UNAUTHORIZED, 401),
            |_| (StatusCode::FORBIDDEN, json!("a page of a gateway")),
            |_| refusal(StatusCode::UNPROCESSABLE_ENTITY, 42201),
        ];
        for refuse in refusals {
            let one =
                move |path: &str| if path.ends_with("/7") { refuse(path) } else { schema(path) };
            let registry = asking(one).await;
            let together = registry.schemas_of([7, 8]).await;
            assert!(matches!(together[&7], Known::Unreadable(_)));
            assert!(matches!(together[&8], Known::Schema(_)));

            let registry = asking(one).await;
            registry.schemas_of([8]).await;
            assert!(
                matches!(registry.schemas_of([7]).await[&7], Known::Unreadable(_)),
                "served before"
            );

            let registry = asking(refuse).await;
            let all = registry.schemas_of([7, 8]).await;
            assert!(all.values().all(|known| matches!(known, Known::Unsettled(_))), "every id");
        }
        let ill = |path: &str| match path.ends_with("/7") {
            true => refusal(StatusCode::INTERNAL_SERVER_ERROR, 50001),
            false => schema(path),
        };
        let known = asking(ill).await.schemas_of([7, 8]).await;
        assert!(matches!(known[&7], Known::Unsettled(_)), "an error of the registry's may pass");
    }

    #[tokio::test]
    async fn a_registry_that_hangs_holds_up_no_id_that_is_known() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let silent = Registry::new(&SchemaRegistry {
            schema_registry_url: url,
            schema_registry_username: None,
            schema_registry_password: None,
            schema_registry_lag: Duration::from_secs(120),
        });
        let silent = Arc::new(silent.unwrap());
        let began = Instant::now();
        assert!(matches!(silent.schemas_of([7]).await[&7], Known::Unsettled(_)));
        assert!(began.elapsed() < REQUEST_TIMEOUT, "{:?}", began.elapsed());
        let (began, later) = (Instant::now(), silent.schemas_of([7, 8]).await);
        assert!(later.values().all(|known| matches!(known, Known::Unsettled(_))));
        assert!(began.elapsed() < ANSWER_TIMEOUT, "it is known to hang: {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_schema_that_refers_to_others_is_read_with_them() {
        let rail = r#"{"type": "enum", "name": "Rail", "symbols": ["card", "unknown"], "default": "unknown"}"#;
        let way =
            r#"{"type": "record", "name": "Way", "fields": [{"name": "rail", "type": "Rail"}]}"#;
        let paid = r#"{"type": "record", "name": "Paid", "fields": [
            {"name": "way", "type": "Way"}, {"name": "other", "type": ["null", "Rail"], "default": null}]}"#;
        let reference = |name: &str| json!([{ "name": name, "subject": name, "version": 1 }]);
        let answers = move |path: &str| {
            let body = match path {
                "/schemas/ids/7" => json!({ "schema": paid, "references": [
                    { "name": "Way", "subject": "Way", "version": 1 },
                    { "name": "Rail", "subject": "Rail", "version": 1 } ] }),
                "/subjects/Way/versions/1" => {
                    json!({ "id": 2, "schema": way, "references": reference("Rail") })
                }
                _ => json!({ "id": 3, "schema": rail }),
            };
            (StatusCode::OK, body)
        };
        let known = asking(answers).await.schemas_of([7]).await;
        let Known::Schema(codec) = &known[&7] else { panic!("it was not read") };
        let read = codec.json(&[0, 2, 0]).unwrap();
        assert_eq!(read, json!({ "way": { "rail": "card" }, "other": "card" }));
    }

    #[tokio::test]
    async fn a_schema_that_the_registry_refuses_to_tell_of_is_no_sign_that_it_is_away() {
        let id_of = async |status, error_code: u32| {
            let registry = asking(move |_| refusal(status, error_code)).await;
            registry.id_of("till.counted", b"", "{}").await.unwrap_err()
        };
        assert!(matches!(id_of(StatusCode::NOT_FOUND, 40401).await, NoId::Unregistered(_)));
        assert!(matches!(id_of(StatusCode::FORBIDDEN, 40301).await, NoId::Refused(_)));
        assert!(matches!(id_of(StatusCode::UNPROCESSABLE_ENTITY, 422).await, NoId::Refused(_)));
        let broken = id_of(StatusCode::INTERNAL_SERVER_ERROR, 50001).await;
        assert!(matches!(broken, NoId::Unreachable(_)), "{broken}");
    }
}
