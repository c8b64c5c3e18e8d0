// Original file: proto/ipdr/agent.proto


export interface PullRequest {
  'reference'?: (string);
  'all'?: (boolean);
}

export interface PullRequest__Output {
  'reference': (string);
  'all': (boolean);
}
