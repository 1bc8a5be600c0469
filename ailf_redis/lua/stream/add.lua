-- Add entries, all or none, if the retention has room; with a dedup id only if the id is new.
--
-- KEYS[3] once     text: "<epoch> <token> <id>" of the entry that was added under a dedup id, with " cancelled" behind
--                  it if it was cancelled; the stream's key again if there is no dedup id
-- ARGV    max_len, max_age_ms, mode, five prefixes (see retention.lua), token ('' for no dedup id), window_ms, then for
--         each entry: delay_ms, at_ms, max_deliveries or '', ordering key, body, headers or ''
-- returns { 1 for a duplicate, else 0, ids… }, or { -1 } if there is no room
-- writes  KEYS[3] with the window as its TTL
-- bound   the entries that are added; see retention.lua

local token, window = ARGV[9], ARGV[10]
local FIRST, EACH = 11, 6
local drafts = (#ARGV - FIRST + 1) / EACH
local epoch

if token ~= '' then
  epoch = string.match(short(redis.call('HGET', meta, 'epoch')), '^%S+$')
  local stored = epoch and redis.call('GET', KEYS[3])
  local era, adder, id, cancelled = string.match(short(stored), '^(%S+) (%S+) (%d+%-%d+)( ?%S*)$')
  if era and era == epoch and (cancelled == '' or adder == token) then return { adder == token and 0 or 1, id } end
end

if max_len or max_age or all_settled then
  local bytes = 0
  for i = FIRST, #ARGV do bytes = bytes + #ARGV[i] end
  local step = trim(drafts, bytes)
  if step.refusal and step.removed == 0 then return redis.error_reply(step.refusal) end
  local length = redis.call('XLEN', stream) + drafts
  if max_len and length > max_len then
    -- If trimming is behind, the next add continues it. This add passes if the stream doesn't grow, or exceeds its
    -- length by no more than trimming may take to catch up.
    local slack = math.max(PAGE, math.floor(max_len / PAGE))
    if step.whole or (not step.kept_up and length > max_len + slack) then return { -1 } end
  end
end

local function add(delay, at, most, key, body, headers)
  local due = math.max(tonumber(at), delay ~= '0' and now + delay or 0)
  local fields = {}
  if due > 0 or most ~= '' or key ~= '' then
    fields = { 'ailf.how', number(due) .. '|' .. most .. '|' .. key }
    if due > 0 and token ~= '' then -- it can be cancelled, which frees the dedup id
      fields[3], fields[4] = 'ailf.once', KEYS[3]
    end
  end
  fields[#fields + 1] = 'ailf.body'
  fields[#fields + 1] = body
  if headers ~= '' then
    fields[#fields + 1] = 'ailf.headers'
    fields[#fields + 1] = headers
  end
  return redis.call('XADD', stream, '*', unpack(fields))
end

local reply = { 0 }
for i = FIRST, #ARGV, EACH do reply[#reply + 1] = add(unpack(ARGV, i, i + EACH - 1)) end

if token ~= '' then
  if not epoch then
    epoch = number(now) .. token
    redis.call('HSET', meta, 'epoch', epoch)
  end
  redis.call('SET', KEYS[3], epoch .. ' ' .. token .. ' ' .. reply[2], 'PX', window)
end
return reply
