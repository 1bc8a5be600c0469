-- The server's time, read once per script; it stands before the text of every transition that tells the time.
--
-- returns nothing by itself
-- writes  nothing

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- The largest time, count or fence: beyond it a double leaves out integers, so that a loop over them may never end. What
-- is stored and larger isn't ours.
local LARGEST = 9007199254740992

-- An integer as text: Lua's own way rounds what is beyond 14 digits.
local function number(n) return string.format('%.0f', n) end
