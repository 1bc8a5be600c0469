-- Remove the entries that a retention doesn't keep, in steps.
--
-- ARGV    max_len, max_age_ms, mode, five prefixes (see retention.lua), the id that the step before returned, or '0-0'
-- returns { how many were removed, how many of these a group had not settled, the id for the next step or '' }

redis.call('XDEL', stream, '0-0') -- a first write that changes nothing: see relief.lua
local step = trim(0, 0, ARGV[9])
return { step.removed, step.evicted, step.after }
