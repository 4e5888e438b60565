-- What posd needs of a PostgreSQL cluster before its first migration: roles and the main schema.
-- `posctl bootstrap` makes the database if it is missing and runs this in it as a superuser, as one
-- transaction. It may be run again at any time, and by two people at once.
--
--   posd_owner       owns schemas, tables and most functions; runs migrations
--   posd             the daemon
--   posd_publisher   platforms that call pos_publish() or pos_key_ok()
--   posd_hook        owns the enqueueing functions; may insert into the outbox and nothing else
--   posd_hook_<slug> one per tenant, made with it: may read that shop's orders and nothing else

-- Roles belong to the cluster, advisory locks to a database: two databases of one cluster can be
-- bootstrapped at once, so "exists already" is expected at any point.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('posd_owner', 'NOLOGIN CREATEROLE'),
            ('posd', 'LOGIN'),
            ('posd_publisher', 'NOLOGIN'),
            ('posd_hook', 'NOLOGIN')
        ) AS roles(name, attributes)
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I %s', wanted.name, wanted.attributes);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
    -- To hand functions to posd_hook, their maker must be able to become it.
    IF NOT pg_has_role('posd_owner', 'posd_hook', 'MEMBER') THEN
        BEGIN
            GRANT posd_hook TO posd_owner;
        EXCEPTION WHEN unique_violation THEN
            NULL;
        END;
    END IF;
END
$$;

SELECT pg_advisory_xact_lock(7097, 1);

DO $$
BEGIN
    -- CREATE: tenants' schemas. The grant is skipped when it is there: rewriting the row of
    -- pg_database would make two bootstraps of one cluster collide.
    IF NOT has_database_privilege('posd_owner', current_database(), 'CREATE') THEN
        EXECUTE format('GRANT CREATE, CONNECT ON DATABASE %I TO posd_owner', current_database());
    END IF;
END
$$;

CREATE SCHEMA IF NOT EXISTS dinedesk_main AUTHORIZATION posd_owner;

CREATE TABLE IF NOT EXISTS dinedesk_main.schema_versions (
    schema_name text NOT NULL,
    file text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (schema_name, file)
);
ALTER TABLE dinedesk_main.schema_versions OWNER TO posd_owner;
GRANT USAGE ON SCHEMA dinedesk_main TO posd, posd_publisher, posd_hook;
GRANT SELECT ON dinedesk_main.schema_versions TO posd;

-- What PostgreSQL logs of the daemon's statements has customers in it: STATEMENT, DETAIL ("Failing row
-- contains …"), and messages that quote values. posd logs its errors itself, without any. Only a
-- superuser can set this. It holds for sessions that log in as posd; in this database only, since
-- rewriting a row that belongs to the cluster would make two bootstraps collide.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('log_min_messages', 'log'),
            ('log_min_error_statement', 'panic'),
            ('log_error_verbosity', 'terse')
        ) AS settings(name, value)
    LOOP
        IF NOT EXISTS (
            SELECT FROM pg_db_role_setting AS s, unnest(s.setconfig) AS one
             WHERE s.setrole = 'posd'::regrole AND starts_with(one, wanted.name || '=')
               AND s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        ) THEN
            EXECUTE format('ALTER ROLE posd IN DATABASE %I SET %I = %L', current_database(), wanted.name, wanted.value);
        END IF;
    END LOOP;
END
$$;
