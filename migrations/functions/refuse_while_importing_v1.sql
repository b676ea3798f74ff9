-- While a log is being imported, nobody else writes to it: what comes in between would take a
-- position that is another event's. The import says of itself `messenger.importing = on`.
CREATE FUNCTION refuse_while_importing_v1()
RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM public.imports AS i WHERE i.finished_at IS NULL)
        AND current_setting('messenger.importing', true) IS DISTINCT FROM 'on'
    THEN
        RAISE EXCEPTION 'the log is being imported' USING ERRCODE = 'ML002';
    END IF;
    RETURN NULL;
END
$$;
