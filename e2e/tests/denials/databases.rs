//! The part of the databases: each role attempts to reach each database, to change its roles and its tables, to read its
//! log, and to read, add, change and remove rows of each table. Nothing stays, because each attempt is rolled back.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use e2e::admin::reporting;
use e2e::stack_description::SERVICES;
use launcher::Stack;
use reqwest::Url;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{Matrix, cells, compare};
use crate::fixture::*;

/// The superuser of every cluster.
const SUPERUSER: &str = "postgres";

/// The database of each cluster that belongs to no service.
const MAINTENANCE_DATABASE: &str = "postgres";

/// The tables that a connector reads before it follows the log.
const CAPTURED_TABLES: [&str; 2] = ["chassis.captured_answers", "chassis.captured_events"];

/// The versions of the migrations, which only a migration changes.
const VERSION_TABLES: [&str; 2] = ["public._sqlx_migrations", "chassis.migrations"];

/// The tables of a service and of the chassis, with the comment that declares the rights of the serving role.
const TABLES: &str = "
    select c.oid::regclass::text, nspname || '.' || relname, coalesce(obj_description(c.oid, 'pg_class'), '')
    from pg_class as c join pg_namespace as n on n.oid = relnamespace
    where relkind in ('r', 'p') and nspname in ('public', 'chassis', 'reporting')";

/// The columns of a table, and whether the serving role may change them in a table that is append-only.
const COLUMNS: &str = "
    select quote_ident(attname), coalesce(col_description(attrelid, attnum) like 'mutable%', false)
    from pg_attribute where attrelid = $1::regclass and attnum > 0 and attgenerated = '' and attidentity = ''
          and not attisdropped";

/// The rules by which a role that reads the log could copy the files of all databases.
const RULES: &str = "select type from pg_hba_file_rules where database && array['replication']";

/// The kept statements that have a password where its verifier would do.
const STATEMENTS: &str =
    "select query from pg_stat_statements where query ~* 'password ''(?!SCRAM-SHA-256[$])'";

/// What a role is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Serves,
    Owns,
    /// Reads the log for a connector.
    Captures,
    /// Writes the reporting database.
    Reports,
}

struct DatabaseTable {
    /// As a statement names it.
    sql_name: String,
    name: String,
    comment: String,
    columns: Vec<(String, bool)>,
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_can_do_in_the_databases_what_is_declared_and_nothing_else() -> Result<()> {
    let _permit = stack_permit().await?;
    let stack = secured_stack()?;
    stack.connect()?;
    stack.up_infrastructure().await?;
    for service in SERVICES {
        stack.migrate(service).await?;
        let mut db = PgConnection::connect(&stack.maintenance_database_url(service)?).await?;
        for (what, query) in [("a rule to copy a cluster", RULES), ("a password", STATEMENTS)] {
            let found: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut db).await?;
            ensure!(found.is_empty(), "{service} has {what}: {found:?}");
        }
    }
    let reports = stack.further_database(reporting::BESIDE, reporting::NAME).await?;
    reporting::create_tables(&reports.owner_url).await?;
    let (mut observed, mut expected) = (Matrix::new(), Matrix::new());
    for own in SERVICES.into_iter().chain([reporting::NAME]) {
        let service = if own == reporting::NAME { reporting::BESIDE } else { own };
        let tables = read_tables(&url_of(&stack, service, SUPERUSER, own)?).await?;
        for (role, purpose) in roles_of(own) {
            for database in SERVICES.into_iter().chain([reporting::NAME, MAINTENANCE_DATABASE]) {
                let cells = cells(&role, "database", database);
                let url = url_of(&stack, service, &role, database)?;
                observed.insert(cells.clone(), attempt_in_database(&url).await?);
                expected.insert(cells, declare_database(database == own, purpose));
            }
            let url = url_of(&stack, service, &role, own)?;
            for table in &tables {
                let cells = cells(&role, "table", &table.name);
                observed.insert(cells.clone(), attempt_on_table(&url, table).await?);
                expected.insert(cells, declare_table(table, purpose));
            }
        }
    }
    compare(&observed, &expected, "databases.txt")
}

/// The roles of a database.
fn roles_of(database: &str) -> Vec<(String, Purpose)> {
    let owner = (format!("{database}_migrator"), Purpose::Owns);
    match database {
        reporting::NAME => vec![(database.to_string(), Purpose::Reports), owner],
        _ => {
            let connector = (format!("{database}_connector"), Purpose::Captures);
            vec![(database.to_string(), Purpose::Serves), owner, connector]
        }
    }
}

/// The URL of a database for a role of the cluster of a service. Each service has a cluster of its own.
pub fn url_of(stack: &Stack, service: &str, role: &str, database: &str) -> Result<String> {
    let cluster = match database {
        MAINTENANCE_DATABASE => service,
        reporting::NAME => reporting::BESIDE,
        of_service => of_service,
    };
    let file = stack.directory().join("secrets/database-users").join(service).join(role);
    let password = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let mut url = Url::parse(&stack.service_database_url(cluster)?)?;
    let named = url.set_username(role).and_then(|()| url.set_password(Some(&password)));
    ensure!(named.is_ok(), "{role} cannot stand in a URL");
    url.set_path(database);
    Ok(url.to_string())
}

async fn read_tables(url: &str) -> Result<Vec<DatabaseTable>> {
    let mut session = PgConnection::connect(url).await?;
    let rows: Vec<(String, String, String)> =
        sqlx::query_as(TABLES).fetch_all(&mut session).await?;
    let mut tables = Vec::new();
    for (sql_name, name, comment) in rows {
        let columns = sqlx::query_as(COLUMNS).bind(&sql_name).fetch_all(&mut session).await?;
        tables.push(DatabaseTable { sql_name, name, comment, columns });
    }
    Ok(tables)
}

async fn attempt_in_database(url: &str) -> Result<BTreeSet<char>> {
    let mut letters = BTreeSet::new();
    // A wrong password, an unknown role and a database that a role may not enter are one outcome.
    let Ok(mut session) = PgConnection::connect(url).await else { return Ok(letters) };
    letters.insert('c');
    for (letter, statement) in [
        ('t', "create table tried (id int)"),
        ('s', "create schema tried"),
        ('e', "create extension file_fdw"),
        ('o', "create role tried"),
        ('p', "set role postgres"),
        ('f', "select pg_read_file('/etc/hostname')"),
        ('l', "select pg_create_logical_replication_slot('tried', 'pgoutput', true)"),
        ('y', "create temporary table tried (id int)"),
        ('b', "select lo_create(0)"),
    ] {
        if is_allowed(&mut session, statement).await? {
            letters.insert(letter);
        }
    }
    for (letter, is_without_limit) in [
        ('n', "select rolconnlimit = -1 from pg_roles where rolname = current_user"),
        ('w', "select current_setting('temp_file_limit') = '-1'"),
    ] {
        let is_without: bool = sqlx::query_scalar(is_without_limit).fetch_one(&mut session).await?;
        if is_without {
            letters.insert(letter);
        }
    }
    Ok(letters)
}

async fn attempt_on_table(url: &str, table: &DatabaseTable) -> Result<BTreeSet<char>> {
    let mut session = PgConnection::connect(url).await?;
    let name = &table.sql_name;
    let mut letters = BTreeSet::new();
    for (letter, statement) in [
        ('r', format!("select from {name}")),
        ('i', format!("insert into {name} select from (select 1) as no_row where false")),
        ('d', format!("delete from {name}")),
        ('t', format!("truncate {name} cascade")),
        ('a', format!("alter table {name} add column tried int")),
        ('x', format!("drop table {name} cascade")),
    ] {
        if is_allowed(&mut session, &statement).await? {
            letters.insert(letter);
        }
    }
    let mut changed = 0;
    for (column, is_mutable) in &table.columns {
        let statement = format!("update {name} set {column} = {column} where false");
        let allowed = is_allowed(&mut session, &statement).await?;
        changed += usize::from(allowed);
        if allowed && *is_mutable {
            letters.insert('m');
        }
    }
    if changed == table.columns.len() {
        letters.insert('u');
        letters.remove(&'m');
    } else if ![0, table.columns.iter().filter(|(_, is_mutable)| *is_mutable).count()]
        .contains(&changed)
    {
        // A column that is not declared.
        letters.insert('!');
    }
    Ok(letters)
}

/// Whether the database allows a statement, which is rolled back.
async fn is_allowed(session: &mut PgConnection, statement: &str) -> Result<bool> {
    /// `insufficient_privilege`
    const DENIED: &str = "42501";
    let mut attempt = session.begin().await?;
    let tried = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *attempt).await;
    attempt.rollback().await?;
    match tried {
        Ok(_) => Ok(true),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(DENIED) => Ok(false),
        Err(error) => bail!("{statement}: {error}"),
    }
}

/// A role reaches its own database. The owner makes tables and schemas there. The limits are those of the serving role
/// alone: an owner may need more for a migration.
fn declare_database(is_own: bool, purpose: Purpose) -> BTreeSet<char> {
    let letters = match purpose {
        _ if !is_own => "",
        Purpose::Owns => "ctsynw",
        Purpose::Captures => "clnw",
        Purpose::Serves | Purpose::Reports => "c",
    };
    letters.chars().collect()
}

/// The owner may do everything. The serving role may do what the comment of a table declares.
fn declare_table(table: &DatabaseTable, purpose: Purpose) -> BTreeSet<char> {
    let letters = match (purpose, &*table.comment) {
        (Purpose::Owns, _) => "ridtaxu",
        (Purpose::Reports, _) => "riu",
        (Purpose::Captures, _) if CAPTURED_TABLES.contains(&&*table.name) => "r",
        (Purpose::Captures, _) => "",
        _ if VERSION_TABLES.contains(&&*table.name) => "r",
        (_, comment) if comment.starts_with("append-only, deletable") => "rid",
        (_, comment) if comment.starts_with("append-only") => "ri",
        (_, comment) if comment.starts_with("deletable") => "ridu",
        (_, comment) if comment.starts_with("read-only") => "r",
        _ => "riu",
    };
    let mutable = table.columns.iter().any(|(_, is_mutable)| *is_mutable);
    let is_mutable = mutable && purpose == Purpose::Serves;
    letters.chars().chain(is_mutable.then_some('m')).collect()
}
