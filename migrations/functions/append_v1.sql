-- Appends a batch of commands to the log: one call, one transaction, one lock.
--
-- Each command gets its verdict as if the commands ran one after the other in their order;
-- only winners are numbered, so positions stay dense. A refusal costs no other command.
--
--   p_streams          the distinct streams of the batch; guards and events name them by index
--   p_guard_ends       per command: where its guards end in the next two
--   p_guard_streams    index of the stream that a guard names
--   p_guard_versions   the version that the decision saw
--   p_event_ends       per command: where its events end in the next two
--   p_event_streams    index of the stream that an event goes to
--   p_events           [{event_id, type, schema_version, data, metadata, recorded_at}, …]
--   p_key_…            per command: its idempotency key with scope, body hash (hex) and answer
--                      (JSON), null without one; null as a whole if no command has one
--   p_claim_…          unique values taken or given back, with the command that does so
--
-- One row a command, in order. Verdicts:
--   appended   position of its last event, or the head if it has none
--   replayed   its key is known with this body: the first position and answer
--   reused     its key is known with another body
--   conflict   a guard does not hold
--   taken      detail names the scope of a value that another stream holds
CREATE FUNCTION append_v1(
    p_streams        text[],
    p_guard_ends     int[],
    p_guard_streams  int[],
    p_guard_versions int[],
    p_event_ends     int[],
    p_event_streams  int[],
    p_events         json,
    p_key_scopes     text[],
    p_keys           text[],
    p_key_hashes     text[],
    p_key_answers    text[],
    p_claim_commands int[],
    p_claim_scopes   text[],
    p_claim_values   text[],
    p_claim_holders  text[],
    p_claim_releases boolean[]
)
RETURNS TABLE (verdict text, last_position bigint, first_answer json, detail text)
LANGUAGE plpgsql
AS $$
DECLARE
    v_head       bigint;
    v_versions   int[];
    v_positions  bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(p_event_streams)]);
    v_numbers    int[] := array_fill(NULL::int, ARRAY[cardinality(p_event_streams)]);
    v_verdicts   text[] := '{}';
    v_last       bigint[] := '{}';
    v_answers    json[] := array_fill(NULL::json, ARRAY[cardinality(p_event_ends)]);
    v_details    text[] := array_fill(NULL::text, ARRAY[cardinality(p_event_ends)]);
    v_guard      int := 1;
    v_event      int := 1;
    v_stream     int;
    v_verdict    text;
    v_known      record;
    v_taken      text;
BEGIN
    SELECT h.position INTO STRICT v_head FROM log_head AS h FOR UPDATE;

    SELECT array_agg(coalesce(latest.stream_version, 0) ORDER BY named.ordinal)
    INTO v_versions
    FROM unnest(p_streams) WITH ORDINALITY AS named (stream, ordinal)
    LEFT JOIN LATERAL (
        SELECT e.stream_version
        FROM event_log AS e
        WHERE e.stream = named.stream
        ORDER BY e.stream_version DESC
        LIMIT 1
    ) AS latest ON true;

    FOR v_command IN 1 .. cardinality(p_event_ends) LOOP
        v_verdict := 'appended';
        v_last[v_command] := v_head;

        IF p_keys[v_command] IS NOT NULL THEN
            SELECT k.body_hash, k.position, k.answer
            INTO v_known
            FROM command_keys AS k
            WHERE k.scope = p_key_scopes[v_command] AND k.key = p_keys[v_command];
            IF FOUND AND v_known.body_hash = decode(p_key_hashes[v_command], 'hex') THEN
                v_verdict := 'replayed';
                v_last[v_command] := v_known.position;
                v_answers[v_command] := v_known.answer;
            ELSIF FOUND THEN
                v_verdict := 'reused';
            END IF;
        END IF;

        WHILE v_guard <= p_guard_ends[v_command] LOOP
            IF v_verdict = 'appended'
                AND v_versions[p_guard_streams[v_guard]] <> p_guard_versions[v_guard]
            THEN
                v_verdict := 'conflict';
            END IF;
            v_guard := v_guard + 1;
        END LOOP;

        IF v_verdict = 'appended' AND v_command = ANY (p_claim_commands) THEN
            SELECT c.scope
            INTO v_taken
            FROM unnest(
                p_claim_commands, p_claim_scopes, p_claim_values, p_claim_holders, p_claim_releases
            ) AS c (command, scope, value, holder, release)
            JOIN unique_values AS u ON u.scope = c.scope AND u.value = c.value
            WHERE c.command = v_command AND NOT c.release AND u.holder <> c.holder
            LIMIT 1;
            IF FOUND THEN
                v_verdict := 'taken';
                v_details[v_command] := v_taken;
            ELSE
                DELETE FROM unique_values AS u
                USING unnest(
                    p_claim_commands, p_claim_scopes, p_claim_values, p_claim_holders, p_claim_releases
                ) AS c (command, scope, value, holder, release)
                WHERE c.command = v_command
                    AND c.release
                    AND u.scope = c.scope
                    AND u.value = c.value
                    AND u.holder = c.holder;
                INSERT INTO unique_values (scope, value, holder)
                SELECT c.scope, c.value, c.holder
                FROM unnest(
                    p_claim_commands, p_claim_scopes, p_claim_values, p_claim_holders, p_claim_releases
                ) AS c (command, scope, value, holder, release)
                WHERE c.command = v_command AND NOT c.release
                ON CONFLICT DO NOTHING;
            END IF;
        END IF;

        WHILE v_event <= p_event_ends[v_command] LOOP
            IF v_verdict = 'appended' THEN
                v_stream := p_event_streams[v_event];
                v_head := v_head + 1;
                v_versions[v_stream] := v_versions[v_stream] + 1;
                v_positions[v_event] := v_head;
                v_numbers[v_event] := v_versions[v_stream];
                v_last[v_command] := v_head;
            END IF;
            v_event := v_event + 1;
        END LOOP;

        IF v_verdict = 'appended' AND p_keys[v_command] IS NOT NULL THEN
            INSERT INTO command_keys (scope, key, body_hash, position, answer)
            VALUES (
                p_key_scopes[v_command],
                p_keys[v_command],
                decode(p_key_hashes[v_command], 'hex'),
                v_last[v_command],
                p_key_answers[v_command]::json
            );
        END IF;
        v_verdicts[v_command] := v_verdict;
    END LOOP;

    INSERT INTO event_log (
        position, event_id, stream, stream_version, type, schema_version, data, metadata, recorded_at
    )
    SELECT
        e.position,
        e.event_id,
        p_streams[e.stream],
        e.number,
        e.type,
        e.schema_version,
        e.data,
        e.metadata,
        e.recorded_at
    FROM ROWS FROM (
        json_to_recordset(p_events)
            AS (
                event_id uuid,
                type text,
                schema_version int,
                data json,
                metadata json,
                recorded_at timestamptz
            ),
        unnest(p_event_streams),
        unnest(v_positions),
        unnest(v_numbers)
    ) AS e (event_id, type, schema_version, data, metadata, recorded_at, stream, position, number)
    WHERE e.position IS NOT NULL;

    UPDATE log_head AS h SET position = v_head WHERE h.position <> v_head;

    RETURN QUERY SELECT * FROM unnest(v_verdicts, v_last, v_answers, v_details);
END
$$;
