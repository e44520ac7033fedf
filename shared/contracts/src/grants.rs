//! The rights in Kafka that follow from the declaration of topics: a publisher writes its topics, a
//! subscriber reads its topics as a group with its own name, and no client does anything else.

use std::borrow::Cow;
use std::collections::BTreeSet;

use anyhow::Result;
use chassis::config::env::BadConfiguration;
use chassis::event::Retention;

use crate::Contracts;

/// The user that sees every topic and every group, reads the declared topics that are not personal, and writes
/// nowhere: an autoscaler, a console.
pub const OBSERVER: &str = "observer";

/// One right of one user. Whatever no grant allows is denied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// The user: the name of a service with SASL, or the common name of a client's certificate.
    pub user: Cow<'static, str>,
    /// What kind of thing the name is.
    pub resource: AclResource,
    /// The name of a topic or a group, or `*` for all of them.
    pub name: Cow<'static, str>,
    /// Whether the right holds for every name that begins with this one.
    pub is_prefix: bool,
    /// What the user may do. `Read` and `Write` include `Describe`.
    pub operation: AclOperation,
}

/// A feature of a system that not every installation runs, such as a connector: its users have rights only where it runs.
pub struct Feature {
    /// Its name, as in the variable `FEATURES` of `contracts apply`.
    pub name: &'static str,
    /// The rights of its users, and of no other user.
    pub grants: fn() -> Vec<Grant>,
}

/// What a grant is about, with Kafka's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum AclResource {
    Topic = 2,
    Group = 3,
    TransactionalId = 5,
}

/// What a grant allows, with Kafka's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum AclOperation {
    Read = 3,
    Write = 4,
    Create = 5,
    Delete = 6,
    Alter = 7,
    Describe = 8,
    DescribeConfigs = 10,
    AlterConfigs = 11,
}

impl Grant {
    /// A right on one topic or group.
    pub const fn new(
        user: &'static str,
        resource: AclResource,
        name: &'static str,
        operation: AclOperation,
    ) -> Grant {
        let (user, name) = (Cow::Borrowed(user), Cow::Borrowed(name));
        Grant { user, resource, name, is_prefix: false, operation }
    }

    /// The same as [`Grant::new`], with names that are made while the program runs.
    pub fn from_names(
        user: &str,
        resource: AclResource,
        name: &str,
        operation: AclOperation,
    ) -> Grant {
        let (user, name) = (Cow::Owned(user.to_owned()), Cow::Owned(name.to_owned()));
        Grant { user, resource, name, is_prefix: false, operation }
    }

    /// The same right, on everything whose name begins with that of the grant.
    pub const fn prefix(mut self) -> Grant {
        self.is_prefix = true;
        self
    }

    /// The name of the group with which a service reads a compacted topic from its beginning. It never
    /// joins the group and commits nothing.
    fn on_rebuild_group(service: &'static str) -> Grant {
        let name = Cow::Owned(format!("{service}-rebuild"));
        Grant { name, ..Grant::new(service, AclResource::Group, "", AclOperation::Describe) }
    }
}

impl Contracts {
    /// The rights of the users of these features.
    ///
    /// # Errors
    /// If the system has no such feature.
    pub fn grants_of_features<Name: AsRef<str>>(
        &self,
        features: &[Name],
    ) -> Result<BTreeSet<Grant>> {
        let mut grants = BTreeSet::new();
        for name in features.iter().map(AsRef::as_ref) {
            let feature = self.features.iter().find(|feature| feature.name == name);
            let feature = feature.ok_or_else(|| {
                let known: Vec<_> = self.features.iter().map(|feature| feature.name).collect();
                BadConfiguration::new(format!(
                    "no feature is called {name:?}; the features are {known:?}"
                ))
            })?;
            grants.extend((feature.grants)());
        }
        Ok(grants)
    }

    /// Every right of every user, without those of the features, in order.
    pub fn grants(&self) -> BTreeSet<Grant> {
        use AclOperation::{Describe, Read, Write};
        use AclResource::{Group, Topic};
        let mut grants: BTreeSet<Grant> = self.further_grants.iter().cloned().collect();
        for resource in [Topic, Group] {
            grants.insert(Grant::new(OBSERVER, resource, "*", Describe));
        }
        for topic in &self.topics {
            if !topic.is_personal() {
                grants.insert(Grant::new(OBSERVER, Topic, topic.name, Read));
            }
            grants.insert(Grant::new(topic.publisher, Topic, topic.name, Write));
            for subscriber in self.subscriptions.subscribers(topic) {
                grants.insert(Grant::new(subscriber, Topic, topic.name, Read));
                grants.insert(Grant::new(subscriber, Group, subscriber, Read));
                if topic.retention == Retention::Compact {
                    grants.insert(Grant::on_rebuild_group(subscriber));
                }
            }
        }
        grants
    }

    /// The services: each publishes or subscribes to a topic.
    pub fn services(&self) -> BTreeSet<&'static str> {
        let publishers = self.topics.iter().map(|topic| topic.publisher);
        publishers.chain(self.subscriptions.services()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use chassis::event::{Subscriptions, Topic};

    use super::*;

    const SOLD: &str = r#"{"type": "record", "name": "Sold", "fields": []}"#;

    static SOLD_TOPIC: Topic = Topic::new("shop.sold", "shop", SOLD);
    static PRICES: Topic = Topic::new("shop.prices", "shop", SOLD).compacted();
    static NAMED: Topic = Topic::new("shop.named", "shop", SOLD).personal(&["mail"]);
    static FURTHER: [Grant; 1] =
        [Grant::new("connect", AclResource::Topic, "connect-", AclOperation::Write).prefix()];
    static SHOP: LazyLock<Contracts> = LazyLock::new(|| contracts(&[&SOLD_TOPIC, &PRICES, &NAMED]));

    /// The contracts of a shop whose topics mail consumes.
    fn contracts(topics: &[&'static Topic]) -> Contracts {
        Contracts::new("shop", "1", topics, Subscriptions::new([("mail", topics.to_vec())]))
    }

    #[test]
    fn a_service_may_do_what_the_topics_say_and_nothing_else() {
        let of = |user: &str| -> Vec<String> {
            let grants = SHOP.grants();
            let own = grants.iter().filter(|grant| grant.user == user);
            own.map(|it| format!("{:?} {:?} {}", it.operation, it.resource, it.name)).collect()
        };
        let shop = ["Write Topic shop.named", "Write Topic shop.prices", "Write Topic shop.sold"];
        assert_eq!(of("shop"), shop);
        let mail = [
            "Read Topic shop.named",
            "Read Topic shop.prices",
            "Read Topic shop.sold",
            "Read Group mail",
            "Describe Group mail-rebuild",
        ];
        assert_eq!(of("mail"), mail);
        let observer = [
            "Describe Topic *",
            "Read Topic shop.prices",
            "Read Topic shop.sold",
            "Describe Group *",
        ];
        assert_eq!(of(OBSERVER), observer);
        assert!(of("connect").is_empty());
        assert_eq!(SHOP.services().into_iter().collect::<Vec<_>>(), ["mail", "shop"]);
    }

    #[test]
    fn a_service_may_hear_its_own_events() {
        static OWN: Topic = Topic::new("shop.counted", "shop", SOLD);
        let subscriptions = Subscriptions::new([("shop", vec![&OWN])]);
        let shop = Contracts::new("shop", "1", &[&OWN], subscriptions);
        let grants = shop.grants();
        for (resource, name, operation) in [
            (AclResource::Topic, "shop.counted", AclOperation::Write),
            (AclResource::Topic, "shop.counted", AclOperation::Read),
            (AclResource::Group, "shop", AclOperation::Read),
        ] {
            assert!(grants.contains(&Grant::new("shop", resource, name, operation)), "{name}");
        }
        assert_eq!(shop.services().into_iter().collect::<Vec<_>>(), ["shop"]);
        let document: serde_json::Value = serde_json::from_str(&shop.asyncapi().unwrap()).unwrap();
        let operations = document["operations"].as_object().unwrap().keys();
        assert!(operations.eq(["shop.receive.shop.counted", "shop.send.shop.counted"]));
    }

    #[test]
    fn a_system_may_declare_further_grants() {
        let more = contracts(&[&SOLD_TOPIC]).grants_also(&FURTHER);
        assert!(more.grants().contains(&FURTHER[0]));
        assert!(!more.services().contains("connect"));
    }

    #[test]
    fn the_users_of_a_feature_have_rights_where_it_runs_alone() {
        static FEATURES: [Feature; 2] = [
            Feature { name: "flows", grants: || FURTHER.to_vec() },
            Feature { name: "reports", grants: Vec::new },
        ];
        let more = contracts(&[&SOLD_TOPIC]).features(&FEATURES);
        assert!(!more.grants().contains(&FURTHER[0]));
        let granted = more.grants_of_features(&["flows", "reports"]).unwrap();
        assert_eq!(granted.into_iter().collect::<Vec<_>>(), FURTHER);
        let unknown = more.grants_of_features(&["flow"]).unwrap_err();
        assert!(unknown.is::<BadConfiguration>(), "{unknown}");
        assert!(unknown.to_string().contains(r#""flow"; the features are ["flows", "reports"]"#));
    }
}
