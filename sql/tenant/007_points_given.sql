-- How many points a key has added today, for limits.points_per_day_per_till. One row for each key, which the
-- first points of the next day begin anew.
CREATE TABLE :"schema".pos_points_given (
    -- `device POS_1` for a device's key, whichever that is; `key 7` for a tenant's key.
    giver text PRIMARY KEY CHECK (giver <> '' AND char_length(giver) <= 200),
    -- The shop's day.
    day date NOT NULL,
    points bigint NOT NULL CHECK (points >= 0)
);
GRANT SELECT, INSERT, UPDATE ON :"schema".pos_points_given TO posd;
