//! A participant of the saga: `make participant NAME=fraud` writes a service whose yes an order needs, and joins it to the
//! order service, the events, the model, and all that `make service` changes.
//!
//! Its files are `e2e/participant_template`. There and in the edits below `fraud`, `cleared`, `flagged`, `withdrawn` and
//! `kept` stand for the words of the new participant.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use events::participants::{Answers, PARTICIPANTS, VOID, WAITING, leg_state, participants};

use crate::new_service::names::{check_word, read_file};
use crate::new_service::template::{self, Change, TemplateFile, append, unknown_form};
use crate::stack_description::checkout;

/// The folders of the template, and where their files are written.
const FOLDERS: [(&str, &str); 5] = [
    ("service", "services/fraud"),
    ("order", "services/order/src/order/participants"),
    ("events", "shared/events/src"),
    ("model", "e2e/model/participants"),
    ("schemas", "schemas"),
];

/// Files of the service that `make service` writes too.
const COMMON: [&str; 2] = ["build.rs", "src/main.rs"];

const TEMPLATE: &str = "e2e/participant_template";
const ORDERS: &str = "services/order/src/order/mod.rs";
const PARTICIPANT_LIST: &str = "shared/events/src/participants.rs";

/// The words of a participant's answers: each stands behind the dot of a topic.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Words {
    /// Its yes: cleared by default
    #[arg(long)]
    yes: Option<String>,
    /// Its no: flagged by default
    #[arg(long)]
    no: Option<String>,
    /// Its undoing: withdrawn by default
    #[arg(long)]
    undone: Option<String>,
    /// Its answer if it cannot undo: kept by default
    #[arg(long)]
    kept: Option<String>,
}

/// A change of a file.
enum Edit {
    /// A part that stands before this place.
    Before(&'static str, &'static str),
    /// An element at the end of the list that begins behind this place and ends with this bracket.
    Append(&'static str, char, &'static str),
}
use Edit::{Append, Before};

/// The files that know every participant, and why each changes.
const EDITS: [(&str, &str, &[Edit]); 12] = [
    (
        "shared/events/src/lib.rs",
        "the module of its events",
        &[Before("pub mod insights;", "pub mod fraud;\n")],
    ),
    (
        "shared/events/src/orders.rs",
        "it may read orders.created, and an order names its no as a reason",
        &[
            Append(
                "topic = \"orders.created\",\n    publisher = \"order\",\n    key = \"order_id\",\n    personal(",
                ')',
                "\"fraud\"",
            ),
            Before(
                "    /// The customer cancelled.\n",
                "    /// Fraud flagged.\n    FraudFlagged,\n",
            ),
        ],
    ),
    (
        PARTICIPANT_LIST,
        "the list of participants",
        &[
            Before(
                "use crate::payments::",
                "use crate::fraud::{FraudCleared, FraudFlagged, FraudKept, FraudWithdrawn};\n",
            ),
            Before(
                "/// How many there are.\n",
                "/// Answers whether an order may go on.\n\
                 #[derive(Clone, Copy, Debug, PartialEq, Eq)]\n\
                 pub enum Fraud {}\n\n\
                 impl Participant for Fraud {\n\
                 const SERVICE: &'static str = \"fraud\";\n\
                 type Accepted = FraudCleared;\n\
                 type Refused = FraudFlagged;\n\
                 type Undone = FraudWithdrawn;\n\n\
                 fn undo_refused() -> Option<&'static Topic> {\n\
                 Some(FraudKept::topic())\n\
                 }\n\
                 }\n\n",
            ),
            Append("[Answers; PARTICIPANTS] {\n    [", ']', "Answers::of::<Fraud>()"),
        ],
    ),
    (
        "schemas/orders.cancelled.avsc",
        "an order names its no as a reason",
        &[Before("\"customer\",\n", "\"fraud_flagged\",\n          ")],
    ),
    (
        ORDERS,
        "the row of an order has its leg, and its no is a reason",
        &[
            Append("pub use leg::{", '}', "FraudLeg"),
            Before(
                "    #[record(immutable)]\n    pub total_cents",
                "    #[schema(required)]\n    pub fraud: Option<FraudLeg>,\n",
            ),
            Before(
                "            total_cents: created.total_cents",
                "            fraud: created.also_asks(\"fraud\").then_some(Leg::WAITING),\n",
            ),
            Append(
                "[Option<LegState>; PARTICIPANTS] {\n        [",
                ']',
                "self.fraud.map(|leg| leg.state)",
            ),
            Before("    Customer,\n    Deadline,\n}", "    FraudFlagged,\n"),
            Before(
                "            Reason::Customer =>",
                "            Reason::FraudFlagged => CancelReason::FraudFlagged,\n",
            ),
        ],
    ),
    (
        "services/order/src/order/participants/mod.rs",
        "order asks it",
        &[
            Before("mod payment;\n", "mod fraud;\n"),
            Append("pub use events::participants::{", '}', "Fraud"),
            Before("use events::participants::{LegState", "use events::fraud::FraudKept;\n"),
            Before(
                ";\n    if is_answer",
                " || apply_answer_of::<Fraud>(entry, order)? || apply_answer::<FraudKept>(entry, order)?",
            ),
        ],
    ),
    (
        "services/order/src/order/leg.rs",
        "its leg has a name",
        &[
            Append("use events::participants::{", '}', "Fraud"),
            Before("\nimpl<P> Leg<P> {\n    pub const", "pub type FraudLeg = Leg<Fraud>;\n"),
        ],
    ),
    (
        "services/order/src/lib.rs",
        "order handles its answers",
        &[
            Before("use participants::{", "use events::fraud::FraudKept;\n"),
            Append("use participants::{", '}', "Fraud"),
            Before(
                "    handlers.on(saga::item_changed)",
                "    let handlers = answers_of::<Fraud>(handlers)\n\
                 .on_with(saga::answered::<FraudKept>, discard::undone);\n",
            ),
        ],
    ),
    (
        "services/order/src/pending_orders.rs",
        "a pending order shows its leg",
        &[
            Append("use crate::order::{", '}', "FraudLeg"),
            Before(
                "    /// The services whose answer is missing.\n",
                "    #[schema(required)]\n    fraud: Option<FraudLeg>,\n",
            ),
        ],
    ),
    (
        "e2e/model/participants/mod.rs",
        "the model checker tries it",
        &[
            Before("mod payment;\n", "mod fraud;\n"),
            Append("use order::participants::{", '}', "Fraud"),
            Append("PARTS: [Part; PARTICIPANTS] =", ']', "Part::of::<Fraud>()"),
        ],
    ),
    (
        "e2e/model/Cargo.toml",
        "the model checker calls its handlers",
        &[Before("order = {", "fraud = { path = \"../../services/fraud\" }\n")],
    ),
    (
        "e2e/src/checker/rows.rs",
        "the checker reads its table",
        &[Append(
            "TABLES: &[(&str, &str, &str, &str)] = &[",
            ']',
            "(\"fraud\", \"fraud_responses\", \"order_id\", \"state\")",
        )],
    ),
];

impl Words {
    /// Each word of the template, and the one that stands for it.
    fn of(&self, name: &str) -> Result<[(&'static str, String); 10]> {
        let words = [
            ("cleared", &self.yes),
            ("flagged", &self.no),
            ("withdrawn", &self.undone),
            ("kept", &self.kept),
        ];
        let words = words.map(|(default, word)| word.clone().unwrap_or(default.to_string()));
        for (nth, word) in words.iter().enumerate() {
            check_word(word)?;
            let is_taken = [WAITING, VOID, "unknown", name].contains(&word.as_str())
                || words[..nth].contains(word);
            ensure!(!is_taken, "`{word}` already has another meaning: choose another word");
        }
        let [yes, no, undone, kept] = words;
        Ok([
            ("Fraud", capital(name)),
            ("fraud", name.to_string()),
            ("Cleared", capital(&yes)),
            ("cleared", yes),
            ("Flagged", capital(&no)),
            ("flagged", no),
            ("Withdrawn", capital(&undone)),
            ("withdrawn", undone),
            ("Kept", capital(&kept)),
            ("kept", kept),
        ])
    }
}

fn capital(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

/// The files of a participant, from the top of the checkout, and those that change outside of its service beside what a
/// service changes.
pub fn files(root: &Path, name: &str, words: &Words) -> Result<(Vec<TemplateFile>, Vec<Change>)> {
    let words = words.of(name)?;
    let with_words =
        |text: &str| words.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to));
    let mut files = Vec::new();
    for (folder, target) in FOLDERS {
        let mut own = Vec::new();
        template::read_folder(&checkout().join(TEMPLATE).join(folder), "", &mut own)?;
        let own = own.into_iter();
        files.extend(
            own.map(|(path, text)| (with_words(&format!("{target}/{path}")), with_words(&text))),
        );
    }
    let mut common = Vec::new();
    template::read_folder(&checkout().join(template::SERVICE), "", &mut common)?;
    common.sort();
    for (path, text) in common.into_iter().filter(|(path, _)| COMMON.contains(&path.as_str())) {
        files.push((format!("services/{name}/{path}"), text.replace("shop", name)));
    }
    let [_, _, _, (_, yes), _, (_, no), _, (_, undone), _, (_, kept)] = &words;
    files.push(migration(root, name, [yes, no, undone, kept])?);

    let mut changes = Vec::new();
    for (file, why, edits) in EDITS {
        let mut text = read_file(&root.join(file))?;
        for edit in edits {
            text = edit.apply(&text, with_words).with_context(|| unknown_form(file))?;
        }
        if file == PARTICIPANT_LIST {
            let count = format!("PARTICIPANTS: usize = {PARTICIPANTS};");
            let more = format!("PARTICIPANTS: usize = {};", PARTICIPANTS + 1);
            ensure!(text.contains(&count), "this program is of another checkout");
            text = text.replace(&count, &more);
        }
        changes.push((file.to_string(), text, why));
    }
    Ok((files, changes))
}

impl Edit {
    fn apply(&self, text: &str, with_words: impl Fn(&str) -> String) -> Option<String> {
        match *self {
            Before(place, part) => {
                let (before, after) = text.split_once(place)?;
                Some(format!("{before}{}{place}{after}", with_words(part)))
            }
            Append(place, bracket, element) => append(text, place, bracket, &with_words(element)),
        }
    }
}

/// The column of the leg, and what keeps a customer from being erased: a leg that is open.
fn migration(root: &Path, name: &str, [yes, no, undone, kept]: [&str; 4]) -> Result<TemplateFile> {
    let folder = "services/order/migrations";
    let number = fs::read_dir(root.join(folder))?.count() + 1;
    let leg = |Answers { service, accepted, undo_refused, .. }| {
        (service, [Some(accepted), undo_refused].into_iter().flatten().map(leg_state).collect())
    };
    let legs = participants().into_iter().map(leg).chain([(name, vec![yes, kept])]);
    let open = legs.map(|(leg, open)| format!("{leg} in ('{WAITING}', '{}')", open.join("', '")));
    let open = Vec::from_iter(open).join("\n          or ");
    let text = format!(
        "-- The leg of {name}. It is null in an order that does not ask it, such as those that are there already: they need no
-- check now.
alter table orders add column {name} text;
alter table orders add constraint orders_{name}_check
    check ({name} in ('{WAITING}', '{yes}', '{no}', '{undone}', '{kept}', '{VOID}')) not valid;

create or replace function erasure_obstacle(customer uuid) returns text language sql stable as $$
    select 'order ' || order_id || ' has not ended with all its legs' from orders
    where customer_id = customer
      and (status = 'pending' or status = 'cancelled' and (
          {open}))
    order by order_id limit 1
$$;
"
    );
    Ok((format!("{folder}/{number}_{name}.sql"), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(yes: &str, no: &str, undone: &str) -> Words {
        let [yes, no, undone, kept] = [yes, no, undone, "stuck"].map(|word| Some(word.to_string()));
        Words { yes, no, undone, kept }
    }

    #[test]
    fn a_participant_has_its_own_words_everywhere() {
        let words = words("granted", "refused", "revoked");
        let (files, changes) = files(&checkout(), "credit", &words).unwrap();
        let changed = changes.iter().map(|(file, text, _)| {
            let before = read_file(&checkout().join(file)).unwrap();
            let added = text.lines().filter(|line| !before.contains(*line));
            (file, added.collect::<String>())
        });
        let created = files.iter().map(|(file, text)| (file, text.clone()));
        for (file, text) in created.chain(changed) {
            // A migration also names the participants that are there already.
            let known = |word: &str| {
                participants().iter().any(|it| it.service == word || leg_state(it.accepted) == word)
            };
            let words = ["fraud", "cleared", "flagged", "withdrawn", "kept"].into_iter();
            for word in words.filter(|word| !known(word)) {
                let text = text.to_lowercase() + file;
                assert!(!text.contains(word), "{file} has {word}:\n{text}");
            }
        }
    }

    #[test]
    fn words_that_are_alike_or_taken_are_refused() {
        for (yes, no, undone) in [
            ("a", "a", "b"),
            ("a", "void", "b"),
            ("a", "unknown", "b"),
            ("a", "b", "match"),
            ("A", "b", "c"),
            ("a", "b", "stuck"),
        ] {
            words(yes, no, undone).of("credit").unwrap_err();
        }
        words("a", "b", "c").of("credit").unwrap();
    }

    #[test]
    fn a_list_gets_one_more_element() {
        for (before, after) in [
            ("x([a, b])", "x([a, b, c])"),
            ("x([\n    a,\n    b,\n])", "x([a,\n    b, c])"),
            ("x([])", "x([c])"),
        ] {
            assert_eq!(append(before, "x([", ']', "c").as_deref(), Some(after));
        }
        assert_eq!(append("y", "x([", ']', "c"), None);
    }
}
