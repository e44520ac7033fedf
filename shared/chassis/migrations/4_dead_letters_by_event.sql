-- Finds the dead letters of an event, for operators who follow one event through the services. Settled dead letters
-- are kept for ever, so without this index the query would read them all.
create index if not exists dead_letters_by_event on chassis.dead_letters (event_id, dead_letter_id)
    where event_id is not null;
