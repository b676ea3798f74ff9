-- What the API may do in PostgreSQL: read, and write what is beside the log. Into the log it comes
-- by append_v1 alone, which runs with the owner's rights.
--
-- To be run by the owner of the tables (who migrates, and whom relay, projectors, maintenance and
-- the command line's tools sign in as), after each `messenger migrate`, as often as you like:
--
--     psql "$MESSENGER_DATABASE_URL" -v ON_ERROR_STOP=1 -f roles.sql
--
-- It needs CREATEROLE where the role is not there yet. Then a login for the API:
--
--     CREATE ROLE messenger_api_1 LOGIN PASSWORD '…' IN ROLE messenger_api;
--
-- Such an API needs MESSENGER_SECRET: the one kept in the database is not for it to see.
-- tests/infra/test_roles.py runs this file and tries the rest.
BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'messenger_api') THEN
        CREATE ROLE messenger_api NOLOGIN;
    END IF;
END
$$;

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, messenger_api;
REVOKE CREATE ON SCHEMA public FROM PUBLIC, messenger_api;
GRANT USAGE ON SCHEMA public TO messenger_api;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO messenger_api;

-- Not the instance's secret; but the keys of former houses, which it wrapped, if the log moved in.
ALTER TABLE instance_secrets ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS former_houses ON instance_secrets;
CREATE POLICY former_houses ON instance_secrets
    FOR SELECT TO messenger_api
    USING (starts_with(name, 'former '));

-- Sessions, limits, presence, uploads.
GRANT INSERT, UPDATE, DELETE ON sessions, login_failures TO messenger_api;
GRANT INSERT, UPDATE, DELETE ON gateways, gateway_users, unfinished_uploads TO messenger_api;

-- Keys are made and destroyed; that one is destroyed is never taken back.
GRANT INSERT, DELETE ON user_keys TO messenger_api;
GRANT INSERT, UPDATE ON erased_keys TO messenger_api;

-- An answer is remembered; what a deleted account had claimed is given back.
GRANT INSERT ON command_keys TO messenger_api;
GRANT DELETE ON unique_values TO messenger_api;

-- When the owner's processes were last heard, for the operators' page; nothing else of what they do.
CREATE OR REPLACE FUNCTION heard_v1()
    RETURNS TABLE (application_name text, connected_seconds float8, heard_seconds float8)
    LANGUAGE sql
    SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        a.application_name,
        extract(epoch FROM clock_timestamp() - min(a.backend_start))::float8,
        min(
            CASE
                WHEN a.state = 'active' AND a.wait_event_type IS DISTINCT FROM 'Client' THEN 0
                ELSE greatest(0, extract(epoch FROM clock_timestamp() - a.state_change))
            END
        )::float8
    FROM pg_stat_activity AS a
    WHERE a.datname = current_database() AND a.application_name LIKE 'messenger %@%'
    GROUP BY a.application_name
$$;
REVOKE EXECUTE ON FUNCTION heard_v1 FROM PUBLIC;
GRANT EXECUTE ON FUNCTION heard_v1 TO messenger_api;

-- A deletion erases in copies of these too (infra.copies).
GRANT UPDATE, DELETE ON users, messages, message_search, attachments TO messenger_api;

-- Replays give what they make the rights of what it stands for (infra.rebuild); what was made before
-- the role was there gets them here.
DO $$
DECLARE
    copy text;
BEGIN
    FOR copy IN SELECT nspname FROM pg_namespace WHERE nspname ~ '^(rebuild|retired)_' LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO messenger_api', copy);
        EXECUTE format('GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO messenger_api', copy);
    END LOOP;
END
$$;

-- The owner's rights, on the owner's tables: no temporary table can stand in for one.
ALTER FUNCTION append_v1 SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp;
REVOKE EXECUTE ON FUNCTION append_v1 FROM PUBLIC;
GRANT EXECUTE ON FUNCTION append_v1 TO messenger_api;

COMMIT;
