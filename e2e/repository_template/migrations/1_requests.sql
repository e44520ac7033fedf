-- One row for each request that was accepted. Rows are kept.
create table requests (
    request_id        uuid primary key,
    subject           text not null check (char_length(subject) between 1 and 200),
    accepted_at       timestamptz not null,
    -- Its shop.accepted.
    accepted_event_id uuid not null
);
comment on table requests is 'append-only';
