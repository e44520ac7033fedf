# Run once by the postgres image, on an empty data directory: the two roles of a service. Its migrator
# owns the database, and so the tables; the role that serves is granted what it needs by the
# migrations. POSTGRES_DB is the service's name.
# A password is in a variable, or in the file that a variable names.
: "${MIGRATOR_PASSWORD:=$(cat "${MIGRATOR_PASSWORD_FILE:-/dev/null}")}"
: "${SERVICE_PASSWORD:=$(cat "${SERVICE_PASSWORD_FILE:-/dev/null}")}"
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set service="$POSTGRES_DB" --set migrator="${POSTGRES_DB}_migrator" \
  --set migrator_password="$MIGRATOR_PASSWORD" --set service_password="$SERVICE_PASSWORD" <<'SQL'
-- pg_stat_statements would keep the text of the next two statements.
set pg_stat_statements.track_utility = off;
create role :"migrator" login password :'migrator_password';
-- The role that serves leaves sessions for others, and fills no disk.
create role :"service" login connection limit 190 password :'service_password';
alter role :"service" set temp_file_limit = '1GB';
-- No table's rights reach a large object.
select format('revoke execute on function %s from public', oid::regprocedure) from pg_proc
where pronamespace = 'pg_catalog'::regnamespace and (proname like 'lo\_%' or proname in ('loread', 'lowrite')) \gexec
alter database :"service" owner to :"migrator";
revoke connect on database postgres, template1 from public;
create extension pg_stat_statements;
SQL
