-- The log is append-only for everyone: its triggers call this on UPDATE, DELETE and TRUNCATE.
CREATE FUNCTION refuse_change_v1()
RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: the log is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'ML001';
END
$$;
