--- Checks the tables of options that people give, so that a slip is named where it was made.
-- @module korv.options

local options = {}

local function kind_of(value) return value == nil and "nothing" or "a " .. type(value) end

local function is_type(wanted)
  return function(value, name)
    if type(value) ~= wanted then return ("%s must be a %s, not %s"):format(name, wanted, kind_of(value)) end
  end
end

local function is_files(value, name)
  if type(value) ~= "table" then return ("%s must be a list of files, not %s"):format(name, kind_of(value)) end
  if #value == 0 then return ("%s must name at least one file"):format(name) end
  for i, file in ipairs(value) do
    if type(file) ~= "string" then return ("%s[%d] must be a string, not %s"):format(name, i, kind_of(file)) end
  end
end

-- What an option's value may be: a function that says what is wrong with one, or returns nil.
local KINDS = {
  table = is_type "table", string = is_type "string", number = is_type "number", boolean = is_type "boolean",
  ["function"] = is_type "function",

  ["string or false"] = function(value, name)
    if value ~= false and type(value) ~= "string" then return ("%s must be a string or false, not %s"):format(name, kind_of(value)) end
  end,

  seconds = function(value, name)
    if type(value) ~= "number" or not (value > 0 and value <= 1e9) then
      local got = type(value) == "number" and tostring(value) or kind_of(value)
      return ("%s must be a positive number of seconds, not %s"):format(name, got)
    end
  end,

  ["seconds or 0"] = function(value, name)
    if type(value) ~= "number" or not (value >= 0 and value <= 1e9) then
      local got = type(value) == "number" and tostring(value) or kind_of(value)
      return ("%s must be a number of seconds from 0 on, not %s"):format(name, got)
    end
  end,

  files = is_files,

  ["file or files"] = function(value, name)
    if type(value) ~= "string" then return is_files(value, name) end
  end,

  codec = function(value, name)
    if type(value) ~= "table" or not (value.encode and value.decode) then
      return ("%s must have the functions encode and decode, as cjson has"):format(name)
    end
  end,
}

--- Raises where a table has an option that is unknown or of the wrong kind.
-- @tparam string what is called with them, for the message: `korv.server`
-- @param given
-- @tparam table known names to kinds: a type's name, `string or false`, `seconds`, `seconds or 0`, `files`, `file or files` or `codec`
-- @tparam int level whose fault it is, as for `error`
function options.check(what, given, known, level)
  if type(given) ~= "table" then error(("%s: options must be a table, not %s"):format(what, kind_of(given)), level + 1) end
  for name, value in pairs(given) do
    if not known[name] then error(("%s: unknown option '%s'"):format(what, tostring(name)), level + 1) end
    local problem = KINDS[known[name]](value, name)
    if problem then error(("%s: %s"):format(what, problem), level + 1) end
  end
end

local COPIED = { table = true, files = true, ["file or files"] = true }

local function copy_of(value)
  if type(value) ~= "table" then return value end
  local copy = {}
  for key, member in pairs(value) do copy[key] = member end
  return copy
end

--- Checks options that are kept: whoever gave them may change the table for the next server or client. Arguments as for `check`.
-- @tparam string what
-- @param given
-- @tparam table known
-- @tparam int level
-- @treturn table a copy
function options.take(what, given, known, level)
  options.check(what, given, known, level + 1)
  local own = {}
  for name, kind in pairs(known) do own[name] = COPIED[kind] and copy_of(given[name]) or given[name] end
  return own
end

--- Calls a function of the core, and has what it raises name who gave it the options.
-- @tparam string what
-- @tparam int level
-- @tparam function fn
-- @param ...
-- @return what fn returned
function options.call(what, level, fn, ...)
  local results = table.pack(pcall(fn, ...))
  if not results[1] then error(("%s: %s"):format(what, tostring(results[2]):gsub("^[^:]*:%d+: ", "")), level + 1) end
  return table.unpack(results, 2, results.n)
end

return options
