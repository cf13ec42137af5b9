--- What the specs of metrics share, on top of spec.pair: who asks a server for them without being counted, and what Prometheus makes of
-- them.
-- @module spec.metered

local korv = require "korv"
local luassert = require "luassert"
local pair = require "spec.pair"
local support = require "spec.support"

local metered = {}

-- In this process ----------------------------------------------------------------------------------------------------------------------

local Asker = {}
Asker.__index = Asker

--- Speaks messages to a server without SSH, so that nothing else is counted.
-- @treturn Asker
function metered.asker_of(server)
  local self = setmetatable({ answers = {}, items = 0, last = 0 }, Asker)
  self.caller = server.core:caller({ name = "ann", fingerprint = "SHA256:x", roles = {} }, {
    answer = function(id, code, body, more)
      if more then
        self.items = self.items + 1
      else
        self.answers[id] = { code = code, body = korv.json.decode(body) }
      end
    end,
  })
  return self
end

-- Asks, and returns the id.
function Asker:begin(verb, resource, more)
  self.last = self.last + 1
  luassert.is_true(self.caller:message(('{"id":%d,"verb":%s,"resource":%s%s}'):format(self.last, korv.json.encode(verb),
    korv.json.encode(resource), more and "," .. more or "")))
  return tostring(self.last)
end

function Asker:wait(id)
  pair.wait_for(function() return self.answers[id] end)
  return self.answers[id]
end

function Asker:ask(...) return self:wait(self:begin(...)) end

function Asker:metrics() return self:ask("GET", "/korv/metrics").body end

--- What a worker counted of an endpoint; nil where that was not asked.
function metered.find(worker, verb, resource)
  for _, endpoint in ipairs(worker.endpoints) do
    if endpoint.verb == verb and endpoint.resource == resource then return endpoint end
  end
end

--- How often the first worker's endpoint answered with each code; nil where it was not asked.
function metered.codes(all, verb, resource)
  local endpoint = metered.find(all.workers[1], verb, resource)
  return endpoint and setmetatable(endpoint.codes, nil)
end

--- A server in this process that listens.
-- @tparam function register gets it, to add endpoints
-- @tparam[opt] table options of korv.server
function metered.serve(register, options)
  local server = pair.new_server(options)
  register(server)
  return pair.listen(server)
end

-- Prometheus ---------------------------------------------------------------------------------------------------------------------------

local PARSE = [[
import json, sys
from prometheus_client.parser import text_string_to_metric_families
print(json.dumps({f.name: {"type": f.type, "help": f.documentation, "samples": [[s.name, s.labels, s.value] for s in f.samples]}
  for f in text_string_to_metric_families(sys.stdin.read())}))
]]

--- What Prometheus' own parser makes of a text.
-- @string text
-- @treturn table families by name
function metered.parse(text)
  local path = support.write("parse.py", PARSE)
  local done = support.run({ support.python, path }, { stdin = text })
  luassert.equal(0, done.code, done.stderr)
  return assert(korv.json.decode(done.stdout))
end

--- The sum of the samples that have these labels, and how many there are.
-- @tparam table family
-- @string name
-- @tparam[opt] table wanted labels
function metered.sum_of(family, name, wanted)
  local sum, count = 0, 0
  for _, sample in ipairs(family.samples) do
    local fits = sample[1] == name
    for label, value in pairs(wanted or {}) do fits = fits and sample[2][label] == value end
    if fits then sum, count = sum + sample[3], count + 1 end
  end
  return sum, count
end

return metered
