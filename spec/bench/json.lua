--- The JSON codec of korv.core against lua-cjson, in one process: MB/s both ways and how many times as fast korv is.
--
-- $ LUA_CPATH="build/?.so;;" lua5.4 spec/bench/json.lua [SECONDS]
--
-- Each figure is the best of several rounds, in which the two take turns, so that a busy machine hits both. SECONDS is how long one
-- round of one codec takes (0.1).
-- @script json

local korv = require "korv.core".json
local cjson = require "cjson"

local ROUNDS = 15
local seconds = tonumber(arg[1]) or 0.1

cjson.encode_number_precision(14) -- the most that it has
cjson.encode_sparse_array(false, 2, 3)

local words = { "alpha", "Straße", "line one\nline two", "C:\\temp", "日本語", "plain text of some length, as people write it", "" }

--- One of many records: what an API sends, timestamps and measurements among it.
local function record(i)
  return {
    id = i * 7919,
    name = words[i % #words + 1] .. i,
    active = i % 3 == 0,
    price = math.random(100000) / 100,
    seen = 1795330870 + math.random(),
    position = { math.random() * 180 - 90, math.random() * 360 - 180 },
    tags = { words[i % 5 + 1], "tag" .. i % 10 },
    counts = { i, i * i, -i, 0 },
    parent = i % 4 == 0 and korv.null or { id = i // 4, kind = "group" },
  }
end

local function records(n)
  local list = {}
  for i = 1, n do list[i] = record(i) end
  return { total = n, items = list }
end

math.randomseed(20240229)
local request = [[{"id":1234567,"verb":"GET","resource":"/users/42/orders","body":{"page":3}}]]
local documents = {
  { "request, 75 bytes", request },
  { "mixed, 20 KB", assert(korv.encode(records(85))) },
  { "mixed, 2 MB", assert(korv.encode(records(8300))) },
}

--- Seconds that one call of f(value) takes.
local function time(f, value, calls)
  local clock, start = os.clock, os.clock()
  for _ = 1, calls do f(value) end
  return (clock() - start) / calls
end

local function calls_for(f, value)
  local calls = 1
  while time(f, value, calls) * calls < seconds / 4 do calls = calls * 2 end
  return math.max(1, math.floor(seconds / time(f, value, calls)))
end

--- The best times of two functions on values of theirs.
local function compare(f, f_value, g, g_value)
  local f_calls, g_calls = calls_for(f, f_value), calls_for(g, g_value)
  local f_best, g_best = math.huge, math.huge
  for _ = 1, ROUNDS do
    collectgarbage()
    f_best = math.min(f_best, time(f, f_value, f_calls))
    collectgarbage()
    g_best = math.min(g_best, time(g, g_value, g_calls))
  end
  return f_best, g_best
end

local function report(name, way, bytes, korv_seconds, cjson_seconds)
  print(("%-18s %-7s %9.0f %9.0f %11.0f %11.0f %8.2f"):format(name, way, korv_seconds * 1e9, cjson_seconds * 1e9,
    bytes / korv_seconds / 1e6, bytes / cjson_seconds / 1e6, cjson_seconds / korv_seconds))
end

print(("%-18s %-7s %9s %9s %11s %11s %8s"):format("document", "way", "korv ns", "cjson ns", "korv MB/s", "cjson MB/s", "ratio"))
for _, document in ipairs(documents) do
  local name, text = document[1], document[2]
  report(name, "decode", #text, compare(korv.decode, text, cjson.decode, text))
  report(name, "encode", #text, compare(korv.encode, assert(korv.decode(text)), cjson.encode, cjson.decode(text)))
end
