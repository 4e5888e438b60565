-- What posd needs of a PostgreSQL cluster before its first migration: roles and the main schema.
-- `posctl bootstrap` makes the database if it is missing and runs this in it as a superuser, as one
-- transaction. It may be run again at any time, and by two people at once.
--
--   posd_owner       owns schemas, tables and most functions; runs migrations
--   posd             the daemon
--   posd_reader      the daemon's connections that read shops' tables; may execute the functions that read, and
--                    nothing else
--   posd_publisher   platforms that call pos_publish() or pos_key_ok()
--   posd_hook        owns the enqueueing functions; may insert into the outbox and nothing else
--   posd_note        may look up functions in posd_hooks, which posd_note_<slug> inherits
--   posd_hook_<slug> one per tenant, made with it: owns the function that reads the shop's orders; may read the
--                    shop's tables and nothing else
--   posd_note_<slug> one per tenant, made with it: owns the hooks; may enqueue for that tenant and nothing else

-- Roles belong to the cluster, advisory locks to a database: two databases of one cluster can be
-- bootstrapped at once, so "exists already" is expected at any point.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('posd_owner', 'NOLOGIN'),
            ('posd', 'LOGIN'),
            ('posd_reader', 'LOGIN'),
            ('posd_publisher', 'NOLOGIN'),
            ('posd_hook', 'NOLOGIN'),
            ('posd_note', 'NOLOGIN')
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
    -- Of an earlier version.
    IF (SELECT r.rolcreaterole FROM pg_roles AS r WHERE r.rolname = 'posd_owner') THEN
        ALTER ROLE posd_owner NOCREATEROLE;
    END IF;
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

LOCK TABLE pg_catalog.pg_namespace IN SHARE ROW EXCLUSIVE MODE;

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
-- Whoever has locked this table changes the schemas. Nobody but posd_owner can. Not an advisory lock, which anybody
-- who can connect could take.
CREATE TABLE IF NOT EXISTS dinedesk_main.schema_changes ();
ALTER TABLE dinedesk_main.schema_changes OWNER TO posd_owner;
GRANT USAGE ON SCHEMA dinedesk_main TO posd, posd_publisher, posd_hook;
GRANT SELECT ON dinedesk_main.schema_versions TO posd;

-- posd's functions for the tenants. No role but their owner has CREATE here, while a shop may have it on its own
-- schema.
CREATE SCHEMA IF NOT EXISTS posd_hooks AUTHORIZATION posd_owner;
DO $$
DECLARE
    taken name := (SELECT n.nspname FROM pg_namespace AS n
                    WHERE n.nspname IN ('dinedesk_main', 'posd_hooks') AND n.nspowner <> 'posd_owner'::regrole LIMIT 1);
BEGIN
    IF taken IS NOT NULL THEN
        RAISE EXCEPTION 'the schema % exists already and does not belong to posd_owner', taken
            USING ERRCODE = 'duplicate_schema', HINT = format('DROP SCHEMA %I, and try again.', taken);
    END IF;
END
$$;
GRANT USAGE ON SCHEMA posd_hooks TO posd, posd_reader, posd_hook, posd_note;

-- Make the two roles of a tenant. The superuser who runs this file owns the function, so posd_owner makes tenants
-- without CREATEROLE, with which it could make itself a superuser's equal on PostgreSQL 14 and 15.
--
-- The tenant is looked up in the system catalogs, by the schema that posd_owner has made for it. The table of
-- tenants belongs to posd_owner: to plan a query of it evaluates the predicates of its indexes, which posd_owner
-- may write, and here they would run as a superuser.
CREATE OR REPLACE FUNCTION dinedesk_main.pos_make_roles(shop text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted text;
    flawed text;
BEGIN
    IF shop !~ '^[a-z0-9][a-z0-9_]{0,47}$' OR NOT EXISTS (
        SELECT FROM pg_namespace AS n
         WHERE n.nspname = 'dinedesk_' || shop AND n.nspowner = 'posd_owner'::regrole
    ) THEN
        RAISE EXCEPTION 'no schema dinedesk_% of posd_owner', shop USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOREACH wanted IN ARRAY ARRAY['posd_hook_' || shop, 'posd_note_' || shop] LOOP
        -- Roles are the cluster's: another database may have a tenant of this name.
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
        -- A role that another user has made may be one that the user can log in as, or become.
        SELECT string_agg(f.flaw, ', ') INTO flawed FROM (
            SELECT 'has attributes' AS flaw FROM pg_roles AS r
             WHERE r.rolname = wanted AND (r.rolcanlogin OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb
                                           OR r.rolreplication OR r.rolbypassrls)
             UNION ALL
            SELECT 'has the member ' || m.member::regrole FROM pg_auth_members AS m
             WHERE m.roleid = wanted::regrole AND m.member <> 'posd_owner'::regrole
               AND NOT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.oid = m.member)
        ) AS f;
        IF flawed IS NOT NULL THEN
            RAISE EXCEPTION 'the role % exists already and %', wanted, flawed
                USING ERRCODE = 'duplicate_object', HINT = format('DROP ROLE %I, and try again.', wanted);
        END IF;
        IF NOT EXISTS (SELECT FROM pg_auth_members AS m
                        WHERE m.roleid = wanted::regrole AND m.member = 'posd_owner'::regrole) THEN
            BEGIN
                -- To hand functions to a role, their maker must be able to become it.
                EXECUTE format('GRANT %I TO posd_owner', wanted);
            EXCEPTION WHEN unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_auth_members AS m
                    WHERE m.roleid = 'posd_note'::regrole AND m.member = ('posd_note_' || shop)::regrole) THEN
        BEGIN
            EXECUTE format('GRANT posd_note TO %I', 'posd_note_' || shop);
        EXCEPTION WHEN unique_violation THEN
            NULL;
        END;
    END IF;
END
$$;
REVOKE ALL ON FUNCTION dinedesk_main.pos_make_roles(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dinedesk_main.pos_make_roles(text) TO posd_owner;

-- What PostgreSQL logs of the daemon's statements has customers in it: STATEMENT, DETAIL ("Failing row
-- contains …"), and messages that quote values. posd logs its errors itself, without any. Only a
-- superuser can set this. It holds for sessions that log in as posd or posd_reader; in this database only, since
-- rewriting a row that belongs to the cluster would make two bootstraps collide.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES ('posd'), ('posd_reader')) AS roles(role), (VALUES
            ('log_min_messages', 'log'),
            ('log_min_error_statement', 'panic'),
            ('log_error_verbosity', 'terse')
        ) AS settings(name, value)
    LOOP
        IF NOT EXISTS (
            SELECT FROM pg_db_role_setting AS s, unnest(s.setconfig) AS one
             WHERE s.setrole = wanted.role::regrole AND starts_with(one, wanted.name || '=')
               AND s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        ) THEN
            EXECUTE format('ALTER ROLE %I IN DATABASE %I SET %I = %L',
                           wanted.role, current_database(), wanted.name, wanted.value);
        END IF;
    END LOOP;
END
$$;
